// Sums and dot products over the entries of sparse codes. A row's or a latent's result is made by one thread in a fixed
// order, so that it is the same bit for bit every time.
//
// Shape letters: B rows, D columns, L latents, K entries of a row.
#include <algorithm>
#include <vector>

#include "vector.h"

extern "C" {

// out[b] = sum over j of values[b, j] * weight[indices[b, j]]; entries of value 0 are passed over
void saelab_bag(const int64_t* indices, const float* values, const float* weight, int n_rows, int kept, int d, float* out) {
#pragma omp parallel for schedule(static)
  for (int b = 0; b < n_rows; b++) {
    const int64_t* at = indices + (size_t)b * kept;
    const float* value = values + (size_t)b * kept;
    float* to = out + (size_t)b * d;
    std::fill(to, to + d, 0.f);
    for (int j = 0; j < kept; j++) {
      if (j + 2 < kept) prefetch(weight + (size_t)at[j + 2] * d, d);
      if (value[j] != 0) add(to, weight + (size_t)at[j] * d, value[j], d);
    }
  }
}

// out[b, j] = rows[b] . weight[indices[b, j]]
void saelab_dot_at(const int64_t* indices, const float* rows, const float* weight, int n_rows, int kept, int d, float* out) {
#pragma omp parallel for schedule(static)
  for (int b = 0; b < n_rows; b++) {
    const int64_t* at = indices + (size_t)b * kept;
    for (int j = 0; j < kept; j++) {
      if (j + 2 < kept) prefetch(weight + (size_t)at[j + 2] * d, d);
      out[(size_t)b * kept + j] = dot(rows + (size_t)b * d, weight + (size_t)at[j] * d, d);
    }
  }
}

// out[l] = sum over latent l's entries of value * rows[row of the entry]
void saelab_sum_by_latent(const int64_t* order, const int64_t* offsets, const float* values, const float* rows,
                          int n_latents, int64_t n_entries, int kept, int d, float* out) {
#pragma omp parallel for schedule(dynamic, 64)
  for (int latent = 0; latent < n_latents; latent++) {
    float* to = out + (size_t)latent * d;
    std::fill(to, to + d, 0.f);
    const int64_t end = latent + 1 < n_latents ? offsets[latent + 1] : n_entries;
    for (int64_t e = offsets[latent]; e < end; e++) {
      if (e + 2 < end) prefetch(rows + order[e + 2] / kept * d, d);
      add(to, rows + order[e] / kept * d, values[order[e]], d);
    }
  }
}

// Entry numbers by latent, rows ascending within a latent (a counting sort), and where each latent's begin.
void saelab_by_latent(const int64_t* indices, int64_t n_entries, int n_latents, int64_t* order, int64_t* offsets) {
  std::vector<int64_t> next(n_latents + 1, 0);
  for (int64_t e = 0; e < n_entries; e++) next[indices[e] + 1]++;
  for (int latent = 0; latent < n_latents; latent++) next[latent + 1] += next[latent];
  std::copy(next.begin(), next.end() - 1, offsets);
  for (int64_t e = 0; e < n_entries; e++) order[next[indices[e]]++] = e;
}

}  // extern "C"
