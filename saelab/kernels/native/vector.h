// Vectors of floats, as GCC and Clang know them on every processor: one source for SSE, AVX2, AVX-512 and NEON.
// What it leaves out: anything a loop over these vectors can say by itself.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint32_t vec_u __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t vec_i __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

static inline vec load(const float* from) { return *(const vec*)from; }
static inline void store(float* to, vec value) { *(vec*)to = value; }
static inline vec all(float value) { return vec{} + value; }

static inline float total(vec value) {
  float sum = 0;
  for (int lane = 0; lane < LANES; lane++) sum += value[lane];
  return sum;
}

static inline vec root(vec value) {
#if defined(__AVX512F__)
  return (vec)_mm512_sqrt_ps((__m512)value);
#elif defined(__AVX__)
  return (vec)_mm256_sqrt_ps((__m256)value);
#else
  vec out{};
  for (int lane = 0; lane < LANES; lane++) out[lane] = __builtin_sqrtf(value[lane]);
  return out;
#endif
}

// a . b, summed in four strands so that the additions do not wait for one another.
static inline float dot(const float* a, const float* b, int n) {
  vec s0{}, s1{}, s2{}, s3{};
  int j = 0;
  for (; j + 4 * LANES <= n; j += 4 * LANES) {
    s0 += load(a + j) * load(b + j);
    s1 += load(a + j + LANES) * load(b + j + LANES);
    s2 += load(a + j + 2 * LANES) * load(b + j + 2 * LANES);
    s3 += load(a + j + 3 * LANES) * load(b + j + 3 * LANES);
  }
  for (; j + LANES <= n; j += LANES) s0 += load(a + j) * load(b + j);
  float sum = total((s0 + s1) + (s2 + s3));
  for (; j < n; j++) sum += a[j] * b[j];
  return sum;
}

// to += factor * from
static inline void add(float* to, const float* from, float factor, int n) {
  vec f = all(factor);
  int j = 0;
  for (; j + 2 * LANES <= n; j += 2 * LANES) {
    store(to + j, load(to + j) + f * load(from + j));
    store(to + j + LANES, load(to + j + LANES) + f * load(from + j + LANES));
  }
  for (; j < n; j++) to[j] += factor * from[j];
}

static inline void prefetch(const float* row, int n) {
  for (int j = 0; j < n; j += 16) __builtin_prefetch(row + j);
}
