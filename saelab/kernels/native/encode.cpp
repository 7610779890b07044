// The k largest of x . w + bias in every row, or all that pass a threshold, without the [B, L] product in memory.
//
// A product of small integers screens all latents; what can still matter is computed again in float. Rows and weights
// are cut into integers, x = s q + r and w = t p + e, so that x . w = s t q . p + (r . w + s q . e). The bracket is a
// sum over D columns of rounding errors, of variance (|r|^2 |w|^2 + |s q|^2 |e|^2) / D where they are independent, and
// WIDE standard deviations are allowed on either side. A latent is kept while its upper end reaches the k-th largest
// lower end seen so far. What is kept is then computed in float, the highest upper ends first, until no upper end left
// reaches the k-th largest value: if one of them lies outside its own interval, or too many are kept, the row is
// reported as open and the caller computes it in full.
//
// A few columns (outliers) go through the screen in float, because one column far larger than the others would leave no
// levels for the rest.
//
// Shape letters: B rows, D columns (padded to P), L latents, K kept per row, O outlier columns.
#include <algorithm>
#include <vector>

#include "vector.h"

#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
#define SAELAB_VNNI 1
#elif defined(__AVXVNNI__)
#define SAELAB_VNNI 2
#endif

namespace {

constexpr float WIDE = 5;
constexpr int TILE_ROWS = 5, TILE_LATENTS = 16, STEP = 32;  // columns are padded to whole steps

#ifdef SAELAB_VNNI
constexpr int LEVELS = 127;  // products are summed in 32 bits at once
#else
constexpr int LEVELS = 31;   // 8 pairs of 63 * 31 * 2 fit into 16 bits
#endif
constexpr int OFFSET = LEVELS + 1;  // rows are stored as q + OFFSET, because the multiplication wants one side unsigned

inline float rounded(float value) { return __builtin_rintf(value); }

struct Candidate {
  float upper;
  int latent;
};


}  // namespace

extern "C" {

int saelab_padded(int d) { return (d + STEP - 1) / STEP * STEP; }

int saelab_screens() {
#if defined(__AVX2__)
  return 1;
#else
  return 0;
#endif
}

// Integers of the weights, 16 latents side by side and 4 columns of each together, and what the screen needs of each:
// scale t, OFFSET * sum of p, length |w|, length |e|.
//   weight [L, D]; column [D]: factor of each column, 0 for an outlier; packed [ceil(L / 16) * 16 * P] int8;
//   scale, length_w, length_e [ceil(L / 16) * 16] float; shift [ceil(L / 16) * 16] int32; outliers [O] and their
//   weights in float, apart [ceil(L / 16), O, 16].
void saelab_pack(const float* weight, const float* column, int n_latents, int d, int8_t* packed, float* scale,
                 int32_t* shift, float* length_w, float* length_e, const int32_t* outliers, int n_outliers,
                 float* apart) {
  const int padded = saelab_padded(d), blocks = (n_latents + TILE_LATENTS - 1) / TILE_LATENTS;
#pragma omp parallel
  {
    std::vector<float> scaled(padded, 0.f);
    std::vector<int8_t> levels(padded);
#pragma omp for schedule(static)
    for (int block = 0; block < blocks; block++) {
      int8_t* to = packed + (size_t)block * TILE_LATENTS * padded;
      for (int lane = 0; lane < TILE_LATENTS; lane++) {
        const int latent = block * TILE_LATENTS + lane, slot = block * TILE_LATENTS + lane;
        if (latent >= n_latents) {
          for (int j = 0; j < padded; j += 4) memset(to + j * TILE_LATENTS + lane * 4, 0, 4);
          for (int o = 0; o < n_outliers; o++) apart[((size_t)block * n_outliers + o) * TILE_LATENTS + lane] = 0;
          scale[slot] = length_w[slot] = length_e[slot] = 0, shift[slot] = 0;
          continue;
        }
        const float* row = weight + (size_t)latent * d;
        float largest = 0, error = 0, square = 0;
        int sum = 0;
        for (int j = 0; j < d; j++) scaled[j] = row[j] * column[j];
        for (int j = 0; j < d; j++) largest = std::fabs(scaled[j]) > largest ? std::fabs(scaled[j]) : largest;
        const float t = largest / LEVELS, inverse = largest > 0 && largest < INFINITY ? LEVELS / largest : 0.f;
        for (int j = 0; j < padded; j++) {
          const float whole = rounded(scaled[j] * inverse), rest = scaled[j] - whole * t;
          error += rest * rest, square += scaled[j] * scaled[j], sum += (int)whole;
          levels[j] = (int8_t)(int)whole;
        }
        for (int j = 0; j < padded; j += 4) memcpy(to + j * TILE_LATENTS + lane * 4, levels.data() + j, 4);
        // A latent with NaN or infinity is always kept, so that computing it in float brings the NaN to light.
        if (!(square < INFINITY)) error = 1e30f, square = 0;
        scale[slot] = t, shift[slot] = OFFSET * sum, length_w[slot] = std::sqrt(square), length_e[slot] = std::sqrt(error);
        for (int o = 0; o < n_outliers; o++)
          apart[((size_t)block * n_outliers + o) * TILE_LATENTS + lane] = row[outliers[o]];
      }
    }
  }
}

}  // extern "C"

#if defined(__AVX2__)
namespace {

struct Weights {
  const int8_t* packed;
  const float *scale, *length_w, *length_e, *apart, *bias, *threshold;  // bias and threshold padded to whole tiles
  const int32_t* shift;
  int n_latents, padded, n_outliers;
};

// One row on its way through the screen.
struct Row {
  float scale, length_r, length_q, floor;  // floor: the least upper end that still matters
  float guess;                             // what the floor began with
  const float* outliers;
  std::vector<Candidate> kept;
  size_t full;  // how many are kept before the floor is raised
  bool open, proven;  // proven: k lower ends reach the guess, so nothing that it ruled out was missed
};

constexpr float LEAST = -3e38f;

// Make a row ready for the screen, with a floor to begin with.
void begin(Row& row, int k, float guess) {
  row.kept.clear();
  row.full = 4 * k + 32, row.proven = false;
  row.guess = std::max(guess, LEAST), row.floor = row.open ? INFINITY : row.guess;
}

// Where floors end up, in units of the rows' lengths: what rows come next can begin with. It saves time and decides
// nothing: a row that the guess was too high for is screened again.
struct Guess {
  int seen = 0;
  float mean = 0, variance = 0;

  float of(const Row& row) const { return seen < 64 ? LEAST : row.length_q * (mean - 3 * std::sqrt(variance)); }

  void learn(const Row& row) {
    if (!(row.length_q > 0) || !(row.floor > LEAST)) return;
    const float rate = std::max(1.f / ++seen, 1.f / 256), off = row.floor / row.length_q - mean;
    mean += rate * off, variance = (1 - rate) * (variance + rate * off * off);
  }
};

inline __m256i dot4(__m256i sum, __m256i x, __m256i w) {
#if SAELAB_VNNI == 1
  return _mm256_dpbusd_epi32(sum, x, w);
#elif SAELAB_VNNI == 2
  return _mm256_dpbusd_avx_epi32(sum, x, w);
#else
  // Spelled out, because compilers gather several products before they add them, and run out of registers.
  __m256i product;
  asm("vpmaddubsw %2, %1, %0" : "=x"(product) : "x"(x), "x"(w));
  asm("vpaddw %1, %0, %0" : "+x"(sum) : "x"(product));
  return sum;
#endif
}

// Integer products of TILE_ROWS rows with TILE_LATENTS latents. Not inlined: the sums must stay in registers.
template <int ROWS>
__attribute__((noinline)) void tile(const uint8_t* x, const int8_t* w, int padded, __m256i out[][2]) {
  for (int r = 0; r < ROWS; r++) out[r][0] = out[r][1] = _mm256_setzero_si256();
#ifdef SAELAB_VNNI
  for (int j = 0; j < padded; j += 4) {
    const __m256i w0 = _mm256_loadu_si256((const __m256i*)(w + j * TILE_LATENTS));
    const __m256i w1 = _mm256_loadu_si256((const __m256i*)(w + j * TILE_LATENTS + 32));
    for (int r = 0; r < ROWS; r++) {
      int32_t four;
      memcpy(&four, x + (size_t)r * padded + j, 4);
      const __m256i xb = _mm256_set1_epi32(four);
      out[r][0] = dot4(out[r][0], xb, w0), out[r][1] = dot4(out[r][1], xb, w1);
    }
  }
#else
  const __m256i ones = _mm256_set1_epi16(1);
  for (int start = 0; start < padded; start += STEP) {
    __m256i part[ROWS][2];
    for (int r = 0; r < ROWS; r++) part[r][0] = part[r][1] = _mm256_setzero_si256();
#pragma GCC unroll 1  // unrolled, all products of a step are made first, and do not fit the registers
    for (int j = start; j < start + STEP; j += 4) {
      const __m256i w0 = _mm256_loadu_si256((const __m256i*)(w + j * TILE_LATENTS));
      const __m256i w1 = _mm256_loadu_si256((const __m256i*)(w + j * TILE_LATENTS + 32));
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; r++) {
        int32_t four;
        memcpy(&four, x + (size_t)r * padded + j, 4);
        const __m256i xb = _mm256_set1_epi32(four);
        part[r][0] = dot4(part[r][0], xb, w0), part[r][1] = dot4(part[r][1], xb, w1);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
      for (int c = 0; c < 2; c++) out[r][c] = _mm256_add_epi32(out[r][c], _mm256_madd_epi16(part[r][c], ones));
  }
#endif
}

struct Screen {
  Weights w;
  int k;             // how many are wanted; 0 for all that pass `threshold`
  bool absolute;
  int capacity;      // most candidates of a row before it is open

  float width(const Row& row, int latent) const {
    const float r = row.length_r * w.length_w[latent], q = row.length_q * w.length_e[latent];
    return WIDE * std::sqrt(r * r + q * q);
  }

  // Raise the floor to the k-th largest lower end and drop what is below it.
  void tighten(Row& row, std::vector<float>& lower) const {
    auto& kept = row.kept;
    if (k && (int)kept.size() >= k) {  // with fewer nothing is proven; `lower` still holds another row's then
      lower.resize(kept.size());
      for (size_t i = 0; i < kept.size(); i++) lower[i] = kept[i].upper - 2 * width(row, kept[i].latent);
      std::nth_element(lower.begin(), lower.begin() + k - 1, lower.end(), std::greater<float>());
      row.floor = std::max(row.floor, lower[k - 1]);
      kept.erase(std::remove_if(kept.begin(), kept.end(), [&](const Candidate& c) { return c.upper < row.floor; }),
                 kept.end());
      row.proven |= lower[k - 1] >= row.guess;
    }
    row.full = std::max<size_t>(2 * kept.size(), 4 * k + 32);
    if ((int)kept.size() > capacity) row.open = true, kept.clear(), row.floor = INFINITY;
  }

  // Compute in float what may be among the k largest, or pass its threshold.
  void settle(Row& row, const float* x, const float* weight, const float* bias, int d,
              std::vector<std::pair<float, int>>& exact, std::vector<float>& best) const {
    auto& kept = row.kept;
    exact.clear(), best.clear();
    std::sort(kept.begin(), kept.end(), [](const Candidate& a, const Candidate& b) { return a.upper > b.upper; });
    for (size_t i = 0; i < kept.size(); i++) {
      const auto [upper, latent] = kept[i];
      if (k && (int)best.size() == k && upper < best.front()) break;
      if (i + 2 < kept.size()) prefetch(weight + (size_t)kept[i + 2].latent * d, d);
      const float value = dot(x, weight + (size_t)latent * d, d) + bias[latent];
      const float size = absolute ? std::fabs(value) : value, slack = 1e-5f * std::fabs(upper) + 1e-3f * width(row, latent);
      if (!(size <= upper + slack && size >= upper - 2 * width(row, latent) - slack)) row.open = true;
      if (k || size > w.threshold[latent]) exact.push_back({value, latent});
      if (!k) continue;
      if ((int)best.size() < k) {
        best.push_back(size), std::push_heap(best.begin(), best.end(), std::greater<float>());
      } else if (size > best.front()) {
        std::pop_heap(best.begin(), best.end(), std::greater<float>());
        best.back() = size, std::push_heap(best.begin(), best.end(), std::greater<float>());
      }
    }
  }

  // Turn a tile's integers into upper ends and keep those that reach their row's floor.
  template <int ROWS>
  void judge(const __m256i sums[][2], int block, Row* rows, std::vector<float>& lower) const {
    const __m256 sign = _mm256_set1_ps(-0.f);
    for (int c = 0; c < 2; c++) {
      const int first = block * TILE_LATENTS + 8 * c;
      const __m256 scale = _mm256_loadu_ps(w.scale + first), bias = _mm256_loadu_ps(w.bias + first);
      const __m256 lw = _mm256_loadu_ps(w.length_w + first), le = _mm256_loadu_ps(w.length_e + first);
      const __m256i shift = _mm256_loadu_si256((const __m256i*)(w.shift + first));
      for (int r = 0; r < ROWS; r++) {
        Row& row = rows[r];
        const __m256 whole = _mm256_cvtepi32_ps(_mm256_sub_epi32(sums[r][c], shift));
        __m256 pre = _mm256_fmadd_ps(_mm256_mul_ps(whole, scale), _mm256_set1_ps(row.scale), bias);
        for (int o = 0; o < w.n_outliers; o++)
          pre = _mm256_fmadd_ps(
              _mm256_set1_ps(row.outliers[o]),
              _mm256_loadu_ps(w.apart + ((size_t)block * w.n_outliers + o) * TILE_LATENTS + 8 * c), pre);
        if (absolute) pre = _mm256_andnot_ps(sign, pre);
        const __m256 by_r = _mm256_mul_ps(lw, _mm256_set1_ps(row.length_r));
        const __m256 by_q = _mm256_mul_ps(le, _mm256_set1_ps(row.length_q));
        // A root by its reciprocal's estimate, which is 2^-11 off at most and much quicker.
        const __m256 variance = _mm256_add_ps(_mm256_fmadd_ps(by_r, by_r, _mm256_mul_ps(by_q, by_q)), _mm256_set1_ps(1e-30f));
        const __m256 sd = _mm256_mul_ps(variance, _mm256_rsqrt_ps(variance));
        const __m256 upper = _mm256_fmadd_ps(_mm256_set1_ps(WIDE), sd, pre);
        const __m256 least = k ? _mm256_set1_ps(row.floor) : _mm256_loadu_ps(w.threshold + first);
        int mask = _mm256_movemask_ps(_mm256_cmp_ps(upper, least, _CMP_GE_OQ));
        if (__builtin_expect(mask != 0, 0) && !row.open) {
          float ends[8];
          _mm256_storeu_ps(ends, upper);
          for (; mask; mask &= mask - 1) {
            const int lane = __builtin_ctz(mask);
            if (first + lane < w.n_latents) row.kept.push_back({ends[lane], first + lane});
          }
          if (row.kept.size() >= row.full) tighten(row, lower);
        }
      }
    }
  }
};

// Integers of one row; false where it holds NaN or infinity.
bool quantise(const float* x, const float* column, int d, int padded, float root_d, uint8_t* q, Row& row) {
  float largest = 0, error = 0, square = 0;
  float check = 0;
  for (int j = 0; j < d; j++) {
    const float size = std::fabs(x[j] * column[j]);
    largest = size > largest ? size : largest, check += x[j] * 0.f;
  }
  if (!(check == 0) || !(largest < INFINITY)) return false;
  const float s = largest / LEVELS, inverse = largest > 0 ? LEVELS / largest : 0.f;
  for (int j = 0; j < d; j++) {
    const float scaled = x[j] * column[j], whole = rounded(scaled * inverse), rest = scaled - whole * s;
    error += rest * rest, square += scaled * scaled;
    q[j] = (uint8_t)((int)whole + OFFSET);
  }
  for (int j = d; j < padded; j++) q[j] = OFFSET;
  row.scale = s, row.length_r = std::sqrt(error) / root_d, row.length_q = (std::sqrt(square) + std::sqrt(error)) / root_d;
  return true;
}

}  // namespace

extern "C" {

// Candidates of every row, computed in float; the k largest of them, or all that pass their threshold, largest first.
//
//   x [B, D] centred; weight [L, D]; bias [L]; threshold [padded L] or null; by_row, by_latent [D]: factors of the
//   columns (0 for outliers); everything saelab_pack wrote; out_values, out_indices [B, width]; out_counts [B]: how many
//   were found, -1 for a row left open; tally[0]: candidates of all rows, tally[1]: rows left open.
// Entries beyond a row's count are 0.
void saelab_encode(const float* x, const float* weight, const float* bias, const float* padded_bias,
                   const float* threshold, const float* by_row, int n_rows, int n_latents, int d, int k, int absolute,
                   const int8_t* packed, const float* scale, const int32_t* shift, const float* length_w,
                   const float* length_e, const int32_t* outliers, int n_outliers, const float* apart, int width,
                   float* out_values, int64_t* out_indices, int32_t* out_counts, int64_t* tally) {
  const int padded = saelab_padded(d), blocks = (n_latents + TILE_LATENTS - 1) / TILE_LATENTS;
  const int panel = TILE_ROWS * (n_latents > 65536 ? 48 : 24);
  const Screen screen{{packed, scale, length_w, length_e, apart, padded_bias, threshold, shift, n_latents, padded, n_outliers},
                      k, absolute != 0, k ? 512 + 16 * k : std::max(2 * width, 512)};
  const float root_d = std::sqrt((float)d);
  int64_t seen = 0, left_open = 0;
#pragma omp parallel reduction(+ : seen, left_open)
  {
    std::vector<uint8_t> q((size_t)panel * padded);
    std::vector<Row> rows(panel);
    std::vector<float> apart_x((size_t)panel * std::max(1, n_outliers)), lower, best;
    std::vector<std::pair<float, int>> exact;
    Guess guess;
    for (auto& row : rows) row.kept.reserve(screen.capacity + TILE_LATENTS);
#pragma omp for schedule(dynamic, 1)
    for (int start = 0; start < n_rows; start += panel) {
      const int count = std::min(panel, n_rows - start);
      for (int r = 0; r < panel; r++) {
        Row& row = rows[r];
        row.open = r >= count;
        begin(row, k, -INFINITY);
        row.outliers = apart_x.data() + (size_t)r * n_outliers;
        row.scale = row.length_r = row.length_q = 0;
        if (row.open) continue;
        const float* own = x + (size_t)(start + r) * d;
        for (int o = 0; o < n_outliers; o++) apart_x[(size_t)r * n_outliers + o] = own[outliers[o]];
        if (!quantise(own, by_row, d, padded, root_d, q.data() + (size_t)r * padded, row)) row.open = true;
        begin(row, k, guess.of(row));
      }
      for (int block = 0; block < blocks; block++)
        for (int r = 0; r < count; r += TILE_ROWS) {
          __m256i sums[TILE_ROWS][2];
          tile<TILE_ROWS>(q.data() + (size_t)r * padded, packed + (size_t)block * TILE_LATENTS * padded, padded, sums);
          screen.judge<TILE_ROWS>(sums, block, rows.data() + r, lower);
        }
      for (int r = 0; r < count; r++)
        if (!rows[r].open) screen.tighten(rows[r], lower);
      for (int r = 0; r < count && k; r += TILE_ROWS) {  // once more, without a guess, where it was not proven
        float floors[TILE_ROWS];
        bool any = false;
        for (int i = 0; i < TILE_ROWS; i++) {
          Row& row = rows[r + i];
          floors[i] = row.floor;
          const bool again = !row.open && !row.proven && row.guess > LEAST;
          any |= again;
          if (again)
            begin(row, k, LEAST);
          else
            row.floor = INFINITY;
        }
        for (int block = 0; block < blocks && any; block++) {
          __m256i sums[TILE_ROWS][2];
          tile<TILE_ROWS>(q.data() + (size_t)r * padded, packed + (size_t)block * TILE_LATENTS * padded, padded, sums);
          screen.judge<TILE_ROWS>(sums, block, rows.data() + r, lower);
        }
        for (int i = 0; i < TILE_ROWS; i++) {
          Row& row = rows[r + i];
          if (row.floor == INFINITY)
            row.floor = floors[i];
          else if (!row.open)
            screen.tighten(row, lower);
        }
      }
      for (int r = 0; r < count; r++) {
        Row& row = rows[r];
        if (k && !row.open) guess.learn(row);
        const size_t at = (size_t)(start + r) * width;
        if (!row.open) screen.settle(row, x + (size_t)(start + r) * d, weight, bias, d, exact, best);
        if (!k && (int)exact.size() > width) row.open = true;
        seen += exact.size();
        if (row.open) {
          out_counts[start + r] = -1, left_open++;
          continue;
        }
        const int wanted = k ? std::min<int>(k, exact.size()) : (int)exact.size();
        std::partial_sort(exact.begin(), exact.begin() + wanted, exact.end(), [&](const auto& a, const auto& b) {
          const float one = absolute ? std::fabs(a.first) : a.first, other = absolute ? std::fabs(b.first) : b.first;
          return one != other ? one > other : a.second < b.second;
        });
        for (int i = 0; i < width; i++) {
          out_values[at + i] = i < wanted ? exact[i].first : 0.f;
          out_indices[at + i] = i < wanted ? exact[i].second : 0;
        }
        out_counts[start + r] = wanted;
      }
    }
  }
  tally[0] = seen, tally[1] = left_open;
}

}  // extern "C"
#endif
