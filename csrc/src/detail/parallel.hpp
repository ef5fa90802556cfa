#pragma once

#include <algorithm>
#include <type_traits>

#include "subspan/context.hpp"

namespace subspan::detail {

/// Threads that a call with this context may use.
int thread_count(context const& ctx);

/// Runs body(chunk) for chunk in 0..chunks-1 on the context's executor or THE thread pool; the
/// caller works too. The first exception is rethrown here once all running chunks have ended.
/// Nested calls, and calls while another caller holds the pool, run serially.
void run_chunks(context const& ctx, index_t chunks, void (*body)(void* data, index_t chunk),
                void* data);

/// Calls body(begin, end) on ranges of `grain` elements of 0..n. Borders depend on n and grain
/// only: combine partial results in chunk order and the bits do not depend on the threads.
template <class Body>
void parallel_for(context const& ctx, index_t n, index_t grain, Body&& body) {
  if (n <= 0) return;
  struct job {
    std::remove_reference_t<Body>& body;
    index_t n, grain;
  } shared{body, n, std::max<index_t>(grain, 1)};
  run_chunks(
      ctx, (n + shared.grain - 1) / shared.grain,
      [](void* data, index_t chunk) {
        auto& self = *static_cast<job*>(data);
        index_t const begin = chunk * self.grain;
        self.body(begin, std::min(begin + self.grain, self.n));
      },
      &shared);
}

}  // namespace subspan::detail
