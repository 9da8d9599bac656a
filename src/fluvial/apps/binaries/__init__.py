"""Black-hole binaries: p(M0, M1 | Z, alpha)."""
