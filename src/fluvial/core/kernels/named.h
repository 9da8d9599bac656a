/* Every kernel is compiled once for each instruction set, under names that end in it: -DSET=avx2. */
#ifndef FLUVIAL_NAMED_H
#define FLUVIAL_NAMED_H

#define JOINED_(name, set) name##_##set
#define JOINED(name, set) JOINED_(name, set)
#define NAMED(name) JOINED(name, SET)
#define INLINE static inline __attribute__((always_inline))

#endif
