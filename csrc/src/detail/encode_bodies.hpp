#pragma once

#include <limits>

#include "detail/device_storage.hpp"
#include "detail/topk_bodies.hpp"

/// The bodies of the kernels of topk_encode: what lies between a product and the entries it keeps.
/// The product comes in tiles of columns; of each row a block keeps what may still be among the k
/// best, and resumes with it at the next tile.

namespace subspan::gpu {

enum class rectifier : std::int32_t { after, before, none };  // as subspan::activation

/// max(z, 0); NaN stays.
template <class P>
SUBSPAN_DEVICE P rectified(P z) {
  return z < 0 ? P(0) : z;
}

/// An entry of z as it is compared.
template <class P>
SUBSPAN_DEVICE P compared(P product, P bias, rectifier where) {
  P const z = product + bias;
  return where == rectifier::before ? rectified(z) : z;
}

/// An entry of z as it is returned: no -0.
template <class P>
SUBSPAN_DEVICE P returned(P z, rectifier where) {
  return (where == rectifier::none ? z : rectified(z)) + P(0);
}

/// The z that an entry was made of. NaN has the key 0.
template <class P>
SUBSPAN_DEVICE P score_of(typename detail::score_order<P>::key_type key) {
  return key == 0 ? std::numeric_limits<P>::quiet_NaN() : detail::score_order<P>::score(key);
}

/// One row of a tile of products, with the biases of its columns; see topk_row. Both start at
/// multiples of 16 bytes.
template <class P>
struct encode_row {
  using key_type = typename detail::score_order<P>::key_type;
  using entry_type = detail::entry<key_type>;
  static constexpr int width = pack<P>::width;
  static constexpr int count = 4 * width;  // of a thread at a time
  static constexpr bool ascending = true;  // later tiles hold greater indices only

  P const* products;
  P const* biases;      // or null
  std::int64_t column;  // of products[0]
  rectifier where;

  struct tile {
    key_type keys[count];
    std::uint32_t first;
    int step;
    SUBSPAN_DEVICE entry_type at(int i) const {
      auto const offset = static_cast<std::uint32_t>(i / width * step + i % width);
      return detail::make_entry<key_type>(keys[i], first + offset);
    }
    SUBSPAN_DEVICE bool passes(int i, key_type least, entry_type) const { return keys[i] >= least; }
  };

  SUBSPAN_DEVICE std::int64_t start(std::int64_t begin) const { return begin; }

  template <class Lanes>
  SUBSPAN_DEVICE std::uint32_t load(Lanes const& lanes, std::int64_t from, std::int64_t,
                                    std::int64_t end, tile& out) const {
    std::int64_t const mine = from + lanes.rank() * width;
    out.first = static_cast<std::uint32_t>(column + mine);
    out.step = lanes.size() * width;
    std::uint32_t valid = 0;
    SUBSPAN_UNROLL
    for (int v = 0; v < count / width; ++v) {
      std::int64_t const j = mine + std::int64_t{v} * out.step;
      pack<P> product{}, bias{};
      if (j + width <= end) {
        product = *reinterpret_cast<pack<P> const*>(products + j);
        if (biases != nullptr) bias = *reinterpret_cast<pack<P> const*>(biases + j);
      } else {
        SUBSPAN_UNROLL
        for (int i = 0; i < width; ++i)
          if (j + i < end) {
            product.at[i] = products[j + i];
            if (biases != nullptr) bias.at[i] = biases[j + i];
          }
      }
      SUBSPAN_UNROLL
      for (int i = 0; i < width; ++i) {
        out.keys[v * width + i] =
            detail::score_order<P>::key(compared(product.at[i], bias.at[i], where));
        valid |= static_cast<std::uint32_t>(j + i < end) << (v * width + i);
      }
    }
    return valid;
  }
};

/// A tile of products [rows, columns], and what was kept of each row before. The first tile of a
/// row has at least k columns.
template <class T>
struct encode_tile {
  using P = wide<T>;
  using key_type = typename detail::score_order<P>::key_type;
  using entry_type = detail::entry<key_type>;

  P const* products;
  index_t rows, columns, pitch;
  P const* biases;  // of the tile's columns, or null
  index_t column;   // of z, where the tile starts
  rectifier where;
  bool is_first, is_last;
  entry_type* kept;       // [rows, room]
  entry_type* bounds;     // [rows]
  int* counts;            // [rows]
  int room;               // at least k
  T* values;              // [rows, k], written by the last tile
  std::int64_t* indices;  // [rows, k]
};

/// Row r of a tile, by a block. `entries`, `words`: see topk_plan.
template <class T, class Lanes>
SUBSPAN_DEVICE void select_of_tile(Lanes const& lanes, topk_plan const& plan,
                                   encode_tile<T> const& tile, index_t r,
                                   typename encode_tile<T>::entry_type* entries, int* words) {
  using P = wide<T>;
  encode_row<P> const row{tile.products + r * tile.pitch, tile.biases, tile.column, tile.where};
  topk_block<typename encode_tile<T>::key_type, Lanes> block(lanes, plan, entries, words);
  auto* const kept = tile.kept + r * tile.room;
  if (tile.is_first) {
    block.scan(row, 0, tile.columns);
  } else {
    block.resume(kept, tile.counts[r], tile.bounds[r]);
    block.template scan<false>(row, 0, tile.columns);
  }
  if (tile.is_last) {
    block.order(true);
    for (int j = lanes.rank(); j < plan.k; j += lanes.size()) {
      auto const entry = block.entries()[j];
      P const z = score_of<P>(detail::key_of(entry));
      tile.values[r * plan.k + j] = storage<T>::narrow(returned(z, tile.where));
      tile.indices[r * plan.k + j] = detail::index_of(entry);
    }
  } else {
    int const count = block.keep(tile.room);
    for (int j = lanes.rank(); j < count; j += lanes.size()) kept[j] = block.entries()[j];
    if (lanes.rank() == 0) {
      tile.counts[r] = count;
      tile.bounds[r] = block.bound();
    }
  }
  lanes.sync();  // the entries are overwritten by the next row
}

}  // namespace subspan::gpu
