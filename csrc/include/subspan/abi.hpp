#pragma once

/// The inline namespace of all public symbols: one per ABI, and the only ones that are exported.
#if defined(__GNUC__)
#define SUBSPAN_ABI v0 __attribute__((visibility("default")))
#else
#define SUBSPAN_ABI v0
#endif
