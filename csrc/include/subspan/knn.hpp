#pragma once

#include <cstdint>
#include <optional>

#include "subspan/abi.hpp"
#include "subspan/context.hpp"
#include "subspan/ragged.hpp"
#include "subspan/view.hpp"

namespace subspan {
inline namespace SUBSPAN_ABI {

enum class metric {
  sqeuclidean,    ///< |x - y|^2
  euclidean,      ///< |x - y|
  inner_product,  ///< <x, y>, larger is better
  cosine,         ///< 1 - <x, y> / (|x| |y|); 1 if a vector is zero
};

enum class knn_precision {
  exact,  ///< the neighbours by the distances in float64: proved for every row, or searched again
  certified,  ///< as exact, after a first pass by bfloat16 products where the CPU has them
  fast,  ///< the neighbours by the products in float; their distances are in float64 all the same
};

struct knn_params {
  subspan::metric metric = metric::euclidean;
  bool exclude_self = false;  ///< row i of y is no neighbour of row i of x
  knn_precision precision = knn_precision::exact;
};

/// How a search went.
struct knn_stats {
  bool symmetric = false;        ///< every product served two rows
  index_t in_place_rows = 0;     ///< rows that were found by reading y where it lies
  index_t difference_tiles = 0;  ///< tiles whose products would have cancelled
  index_t uncertified_rows = 0;  ///< rows that the pass in low precision left in doubt
  index_t repeated_rows = 0;     ///< rows that were searched again, by differences or in double
  index_t scanned_rows = 0;      ///< rows that were searched once more in float64
};

/// The k nearest rows of y for every row of x.
///
///   x         [q, d], y [n, d]  any strides
///   mask      [q, n] or [1, n]  1: y's row may be a neighbour of x's row; any strides
///   distances [q, k]  C order, nearest first
///   indices   [q, k]  C order
///
/// THE order: the smaller distance (as computed in float64 from the rows as they are), of equal
/// distances the smaller index. The result depends on nothing else: not on threads, blocks, or on how
/// it was found. Rows of y with NaN or Inf are never neighbours, a row of x with one has none. Where
/// there are fewer than k, index -1 and distance inf (-inf for inner_product) follow.
///
/// T: half, bfloat16, float, double, int8, uint8. n < 2^32. CPU. O(q n d) flops in float (double for
/// double, and for integers with d > 257); rows where rounding or cancellation leave doubt are
/// searched again. Where y is x itself every product serves both of its rows; for up to 8 queries y is
/// read where it lies. Scratch: 16 MiB of packed
/// y, the packed rows of a strip, up to 64 MiB of candidates; of x against itself up to 1 GiB.
template <class T>
knn_stats knn(context const& ctx, strided_view<T const, 2> x, strided_view<T const, 2> y,
              std::optional<strided_view<std::uint8_t const, 2>> mask,
              strided_view<double, 2> distances, strided_view<index_t, 2> indices,
              knn_params params = {});

/// knn of x in y, and back: of y in x. The same results, of the same products where both have 4096
/// rows and more.
///
///   distances, indices            [q, k]  C order, as of knn
///   back_distances, back_indices  [n, k]  the nearest rows of x for every row of y
///
/// CPU. O(q n d) flops, once.
template <class T>
knn_stats knn_both(context const& ctx, strided_view<T const, 2> x, strided_view<T const, 2> y,
                   strided_view<double, 2> distances, strided_view<index_t, 2> indices,
                   strided_view<double, 2> back_distances, strided_view<index_t, 2> back_indices,
                   metric how = metric::euclidean);

/// The rows of y within `radius` of every row of x: distance <= radius, of inner products >= radius.
/// As rows in THE order of knn; mask and what is never a neighbour as there.
///
///   offsets [q + 1]  C order
///
/// CPU. Scratch beside knn's: 16 bytes for every pair that is not clearly farther.
template <class T>
knn_stats radius_neighbors(context const& ctx, strided_view<T const, 2> x,
                           strided_view<T const, 2> y,
                           std::optional<strided_view<std::uint8_t const, 2>> mask, double radius,
                           strided_view<index_t, 1> offsets,
                           ragged_allocator<double> const& allocate, knn_params params = {});

}  // namespace v0
}  // namespace subspan
