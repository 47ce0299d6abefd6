// What forward and backward pass both do with the bottleneck's maps.
#pragma once

#include "cpu/gate.h"

namespace fastht::cpu {
namespace {

// Calls body(r, count) for the rows [0, rows), as many at a time as the products are best fed with.
template <class Body>
FASTHT_INLINE void by_tile_rows(int64_t rows, Body&& body) {
  for (int64_t r = 0; r < rows; r += kTileRows) body(r, min(kTileRows, rows - r));
}

// Replaces 16 channels of a map, rows `map_row` apart, by their filtered values. Their spectrum
// stays in `spectrum`; the other two are for work.
void filter_channels(const Shape& shape, const Folded& folded, int64_t channel, float* map,
                     int64_t map_row, float* spectrum, float* work, float* scaled) {
  const SpectralShape spectral{shape.height, shape.width, shape.narrow};
  const int64_t c = channel;
  analyse(spectral, folded.spectral, map + c, map_row, kPad, spectrum + c, work + c);
  filter_and_synthesise(spectral, folded.spectral, c, spectrum + c, kPad, scaled + c, work + c,
                        map + c, map_row);
}

// The tokens of a part: `plain` prefix tokens, then patches.
struct PartTokens {
  int64_t first, count, plain, patches;

  PartTokens(const Shape& shape, int64_t part)
      : first(shape.first_token(part)),
        count(shape.last_token(part) - first),
        plain(part == 0 ? shape.prefix : 0),
        patches(count - plain) {}
};

// v, the bank's output with its skip, for a part's patches, and y, what goes into the activation,
// for all of its tokens. u(token, c) is a vector of u; `operand` holds rows of a left factor.
template <class U>
FASTHT_INLINE void bank_and_pointwise(const Problem& call, const Shape& shape, const Folded& folded,
                                      int64_t part, const float* map, const float* kernel,
                                      const float* bias, U&& u, float* v, Operand* operand,
                                      float* y) {
  const PartTokens at(shape, part);
  const int64_t narrow = shape.narrow, first_row = shape.first_row(part);
  for (int64_t row = first_row; row < shape.last_row(part); ++row)
    convolve_row(map, row, shape.width, narrow, kernel, bias,
                 v + (row - first_row) * shape.width * narrow);
  if (call.full_filter())  // the skip around the bank is of the unfiltered map
    for (int64_t t = 0; t < at.patches; ++t)
      for (int64_t c = 0; c < narrow; c += kLanes) {
        float* to = v + t * narrow + c;
        store(to, load(to) + u(at.first + at.plain + t, c));
      }
  for (int64_t t = 0; t < at.plain; ++t)
    for (int64_t c = 0; c < narrow; c += kLanes) store(y + t * narrow + c, u(t, c));

  // y = v + P1 v + p1
  float* patches = y + at.plain * narrow;
  for (int64_t t = 0; t < at.patches; ++t) {
    const float* from = v + t * narrow;
    operand_row(from, narrow, operand + t * shape.depth, shape.depth);
    for (int64_t c = 0; c < narrow; c += kLanes)
      store(patches + t * narrow + c, load(from + c) + load(folded.pointwise_bias + c));
  }
  gemm(at.patches, narrow, shape.depth, operand, shape.depth, folded.pointwise, patches, narrow,
       true);
}

}  // namespace
}  // namespace fastht::cpu
