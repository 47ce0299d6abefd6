// The sizes that follow from a call: padded widths, and how an image is cut into parts.
#pragma once

#include "cpu/gemm.h"
#include "cpu/problem.h"

namespace fastht::cpu {
namespace {

// A part is a few whole rows of the map; the prefix tokens belong to the first one. Parts are a
// matter of the grid alone.
struct Shape {
  int64_t tokens, prefix, height, width, dim, channels;
  int64_t wide;    // dim padded: columns of rows of scratch
  int64_t narrow;  // channels padded
  int64_t depth;   // channels padded as the depth of a product
  int64_t part_rows, parts;
  int64_t panels;  // of `wide`

  explicit Shape(const Problem& call)
      : tokens(call.tokens()),
        prefix(call.prefix),
        height(call.height),
        width(call.width),
        dim(call.dim),
        channels(call.channels),
        wide(round_up(dim, kPad)),
        narrow(round_up(channels, kPad)),
        depth(padded_depth(narrow)),
        part_rows(max<int64_t>(1, (48 + width / 2) / width)),
        parts(ceil_div(height, part_rows)),
        panels(ceil_div(wide, kPanel)) {}

  int64_t first_row(int64_t part) const { return part * part_rows; }
  int64_t last_row(int64_t part) const { return min((part + 1) * part_rows, height); }
  int64_t first_token(int64_t part) const {
    return part == 0 ? 0 : prefix + first_row(part) * width;
  }
  int64_t last_token(int64_t part) const { return prefix + last_row(part) * width; }
  int64_t part_tokens() const { return prefix + min(part_rows, height) * width; }

  int64_t map_row() const { return (width + 6) * narrow; }
  int64_t map_size() const { return (height + 6) * map_row(); }
  // Where row y of the grid begins in a padded map.
  int64_t map_at(int64_t y) const { return (y + 3) * map_row() + 3 * narrow; }
};

}  // namespace
}  // namespace fastht::cpu
