// One visit to every latent: the gradient of its row of a weight, Adam, and the row back at unit norm where it has to be.
//
// The gradient is a sum of terms, each value * row over the latent's own entries, and exists for one latent at a time
// only. Moments are floats, bfloat16, or 8-bit floats (e4m3: of the average itself, and of the root of the average
// square) with one scale a row; the narrow ones are rounded up or down at random, so that on average nothing is lost.
// With `touched` only latents with entries are visited, and the steps that a latent missed (with a gradient of zero, where
// only the momentum moves it) are made up when it is next visited:
//   w -= m / sqrt(v) * sum over missed steps j of rate_j * (beta1 / sqrt(beta2))^j,  rate_j = lr sqrt(1-beta2^t) / (1-beta1^t)
// in which only epsilon, next to sqrt(v), is left out.
//
// Shape letters: B rows, D columns, L latents, K entries of a row.
#include <algorithm>
#include <vector>

#include "vector.h"

namespace {

// Random bits that depend on nothing but the step and the place.
inline vec_u scramble(vec_u h) {
  h ^= h >> 16, h *= 0x7feb352dU, h ^= h >> 15, h *= 0x846ca68bU;
  return h ^ (h >> 16);
}

inline vec_u bits(vec value) { return (vec_u)value; }
inline vec floats(vec_u value) { return (vec)value; }

struct Plain {
  static constexpr bool scaled = false, random = false;
  typedef float Kept;
  static vec read(const Kept* from, float) { return load(from); }
  static void write(Kept* to, vec value, float, vec_u) { store(to, value); }
};

struct Brain {  // bfloat16: the upper half of a float
  static constexpr bool scaled = false, random = true;
  typedef uint16_t Kept;
  static vec read(const Kept* from, float) {
    vec_u wide;
    for (int lane = 0; lane < LANES; lane++) wide[lane] = from[lane];
    return floats(wide << 16);
  }
  static void write(Kept* to, vec value, float, vec_u chance) {
    const vec_u wide = (bits(value) + (chance & 0xFFFFU)) >> 16;
    for (int lane = 0; lane < LANES; lane++) to[lane] = (Kept)wide[lane];
  }
};

struct Byte {  // e4m3: sign, 4 bits of exponent (bias 7), 3 bits of mantissa; its largest is 448
  static constexpr bool scaled = true, random = true;
  typedef uint8_t Kept;
  static vec read(const Kept* from, float scale) {
    vec_u wide;
    for (int lane = 0; lane < LANES; lane++) wide[lane] = from[lane];
    const vec size = floats((wide & 0x7FU) << 20) * all(0x1p120f) * all(scale);
    return floats(bits(size) | ((wide & 0x80U) << 24));
  }
  static void write(Kept* to, vec value, float scale, vec_u chance) {
    const vec_u sign = (bits(value) >> 24) & 0x80U;
    const vec size = floats(bits(value) & 0x7FFFFFFFU) * all(scale > 0 ? 1 / scale : 0.f);
    const vec_u normal = ((bits(size) + (chance & 0xFFFFFU)) >> 20) - ((127 - 7) << 3);
    // Below 2^-6 steps are even: as many 2^-9 as fit, and one more by chance.
    const vec even = size * all(512.f) + floats((chance >> 9) | 0x3F800000U) - all(1.f);
    for (int lane = 0; lane < LANES; lane++) {
      const uint32_t code = size[lane] < 0x1p-6f ? (uint32_t)even[lane] : std::min(normal[lane], 0x7EU);
      to[lane] = (Kept)(code | sign[lane]);
    }
  }
};

struct Settings {
  float rate, beta1, beta2, epsilon, root_correction;  // rate = lr / (1 - beta1^t); root_correction = 1 / sqrt(1 - beta2^t)
  int32_t step;
  uint32_t seed;
  int unit, touched;
};

struct Term {
  const int64_t *order, *offsets;  // entries by latent [B * K], where each latent's begin [L]
  const float *values, *rows;      // [B, K], [B, D]
  int64_t kept, n_entries;
};

// gradient += value * row over a latent's entries; returns whether there are any
bool gather(const Term& term, int latent, int n_latents, int d, float* gradient) {
  const int64_t begin = term.offsets[latent], end = latent + 1 < n_latents ? term.offsets[latent + 1] : term.n_entries;
  for (int64_t e = begin; e < end; e++) {
    const int64_t entry = term.order[e];
    if (e + 2 < end) prefetch(term.rows + term.order[e + 2] / term.kept * d, d);
    add(gradient, term.rows + entry / term.kept * d, term.values[entry], d);
  }
  return begin < end;
}

template <class Moment>
void adam(float* w, typename Moment::Kept* m, typename Moment::Kept* v, float* scale_m, float* scale_v, const float* g,
          int d, const Settings& s, uint32_t place, float behind, float decay1, float decay2) {
  typedef typename Moment::Kept Kept;
  const vec beta1 = all(s.beta1), beta2 = all(s.beta2), rest1 = all(1 - s.beta1), rest2 = all(1 - s.beta2);
  vec_u counter;
  for (int lane = 0; lane < LANES; lane++) counter[lane] = lane;
  const float old_m = Moment::scaled ? *scale_m : 0, old_v = Moment::scaled ? *scale_v : 0;
  alignas(64) float new_m[Moment::scaled ? 16384 : 1], new_v[Moment::scaled ? 16384 : 1];
  float top_m = 0, top_v = 0;
  for (int j = 0; j < d; j += LANES) {
    const int n = std::min(LANES, d - j);
    Kept part_m[LANES], part_v[LANES];
    float part_w[LANES], part_g[LANES];
    const bool whole = n == LANES;
    if (!whole) {
      memset(part_m, 0, sizeof part_m), memset(part_v, 0, sizeof part_v);
      memset(part_w, 0, sizeof part_w), memset(part_g, 0, sizeof part_g);
      memcpy(part_m, m + j, n * sizeof(Kept)), memcpy(part_v, v + j, n * sizeof(Kept));
      memcpy(part_w, w + j, n * 4), memcpy(part_g, g + j, n * 4);
    }
    vec mm = Moment::read(whole ? m + j : part_m, old_m), vv = Moment::read(whole ? v + j : part_v, old_v);
    vec ww = load(whole ? w + j : part_w);
    const vec gg = load(whole ? g + j : part_g);
    if (Moment::scaled) vv *= vv;
    if (decay2 != 1) {
      ww -= mm * all(behind) / (root(vv) + all(1e-30f));
      mm *= all(decay1), vv *= all(decay2);
    }
    mm = beta1 * mm + rest1 * gg, vv = beta2 * vv + rest2 * gg * gg;
    const vec size = root(vv);
    ww -= all(s.rate) * mm / (size * all(s.root_correction) + all(s.epsilon));
    if (Moment::scaled) {
      store(new_m + j, mm), store(new_v + j, size);
      for (int lane = 0; lane < n; lane++)
        top_m = std::max(top_m, std::fabs(mm[lane])), top_v = std::max(top_v, size[lane]);
    } else {
      const vec_u chance = Moment::random ? scramble(counter + (place + (uint32_t)j)) : vec_u{};
      Moment::write(whole ? m + j : part_m, mm, 0, chance);
      Moment::write(whole ? v + j : part_v, vv, 0, scramble(chance + 0x9E3779B9U));
    }
    if (whole) {
      store(w + j, ww);
    } else {
      store(part_w, ww), memcpy(w + j, part_w, n * 4);
      if (!Moment::scaled) memcpy(m + j, part_m, n * sizeof(Kept)), memcpy(v + j, part_v, n * sizeof(Kept));
    }
  }
  if (!Moment::scaled) return;
  *scale_m = top_m / 448, *scale_v = top_v / 448;
  for (int j = 0; j < d; j += LANES) {
    const int n = std::min(LANES, d - j);
    Kept part_m[LANES], part_v[LANES];
    const vec_u chance = scramble(counter + (place + (uint32_t)j));
    Moment::write(part_m, load(new_m + j), *scale_m, chance);
    Moment::write(part_v, load(new_v + j), *scale_v, scramble(chance + 0x9E3779B9U));
    memcpy(m + j, part_m, n * sizeof(Kept)), memcpy(v + j, part_v, n * sizeof(Kept));
  }
}

template <class Moment>
void update(float* weight, void* m_, void* v_, float* scale_m, float* scale_v, int n_latents, int d, const Term* terms,
            int n_terms, const float* dense, const Settings& s, int32_t* last, const float* history) {
  auto *m = (typename Moment::Kept*)m_, *v = (typename Moment::Kept*)v_;
  const float ratio = s.beta1 / std::sqrt(s.beta2);
#pragma omp parallel
  {
    std::vector<float> gradient(d + LANES);
    float* g = gradient.data();
#pragma omp for schedule(dynamic, 64)
    for (int latent = 0; latent < n_latents; latent++) {
      float* w = weight + (size_t)latent * d;
      bool any = dense != nullptr;
      if (dense)
        memcpy(g, dense + (size_t)latent * d, d * 4);
      else
        std::fill(g, g + d, 0.f);
      for (int t = 0; t < n_terms; t++) any |= gather(terms[t], latent, n_latents, d, g);
      if (s.touched && !any) continue;
      if (s.unit) add(g, w, -dot(g, w, d), d);
      float behind = 0, decay1 = 1, decay2 = 1;
      if (s.touched) {
        const int missed = s.step - 1 - last[latent];
        float power = 1;
        for (int j = 1; j <= std::min(missed, 400); j++) power *= ratio, behind += history[last[latent] + j] * power;
        if (missed > 0) decay1 = std::pow(s.beta1, missed), decay2 = std::pow(s.beta2, missed);
        last[latent] = s.step;
      }
      const uint32_t place = ((uint32_t)latent * (uint32_t)d) ^ (s.seed * 0x9E3779B1U);
      adam<Moment>(w, m + (size_t)latent * d, v + (size_t)latent * d, scale_m + latent, scale_v + latent, g, d, s, place,
                   behind, decay1, decay2);
      if (s.unit) {
        const float norm = std::sqrt(dot(w, w, d));
        const float factor = norm > 0 ? 1 / norm : 1;
        for (int j = 0; j < d; j++) w[j] *= factor;
      }
    }
  }
}

}  // namespace

extern "C" {

// weight [L, D]; moments of kind 0 float, 1 bfloat16, 2 e4m3 with scales [L]; dense [L, D] or null: a gradient to add;
// last [L] int32: the step of each latent's last visit; history [step]: rate_j of every step so far, from step 1 at [1].
void saelab_update(float* weight, void* m, void* v, float* scale_m, float* scale_v, int n_latents, int d, int n_terms,
                   const int64_t** order, const int64_t** offsets, const float** values, const float** rows,
                   const int64_t* kept, const int64_t* n_entries, const float* dense, int kind, int unit, int touched,
                   float rate, float root_correction, float beta1, float beta2, float epsilon, int step, uint32_t seed,
                   int32_t* last, const float* history) {
  std::vector<Term> terms;
  for (int t = 0; t < n_terms; t++) terms.push_back({order[t], offsets[t], values[t], rows[t], kept[t], n_entries[t]});
  const Settings s{rate, beta1, beta2, epsilon, root_correction, step, seed, unit, touched};
  auto run = kind == 0 ? update<Plain> : kind == 1 ? update<Brain> : update<Byte>;
  run(weight, m, v, scale_m, scale_v, n_latents, d, terms.data(), n_terms, dense, s, last, history);
}

}  // extern "C"
