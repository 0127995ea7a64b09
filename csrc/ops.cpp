// The list of ops in this library and their calls so far, for kernels/_ext.py. Schemas, fakes and
// gradients are registered in Python (kernels/_op.py), once for every device.
#include "op.h"

namespace ivcl {

static std::vector<CallCounter*>& counters() {
  static std::vector<CallCounter*> list;
  return list;
}

CallCounter::CallCounter(const char* name) : name(name) { counters().push_back(this); }

}  // namespace ivcl

// A digest of the sources, which kernels/_ext.py looks for in the file before it loads it.
extern "C" __attribute__((used)) const char ivcl_fast_sources[] = "ivcl_fast sources " IVCL_SOURCES;

#define IVCL_EXPORT extern "C" __attribute__((visibility("default")))

IVCL_EXPORT int64_t ivcl_fast_op_count() { return ivcl::counters().size(); }
IVCL_EXPORT const char* ivcl_fast_op_name(int64_t i) { return ivcl::counters()[i]->name; }
IVCL_EXPORT int64_t ivcl_fast_op_calls(int64_t i) { return ivcl::counters()[i]->count.load(); }
