#pragma once

/// THE lists of element types that are instantiated: each source ends with one of them.
/// Storage types are widened to float before anything is computed.
#define SUBSPAN_FOREACH_REAL(apply) apply(float) apply(double)
#define SUBSPAN_FOREACH_STORAGE(apply) apply(half) apply(bfloat16) apply(float) apply(double)
/// What has an order.
#define SUBSPAN_FOREACH_ORDERED(apply) \
  SUBSPAN_FOREACH_STORAGE(apply)       \
  apply(std::int8_t) apply(std::uint8_t) apply(std::int16_t) apply(std::int32_t) apply(std::int64_t)
