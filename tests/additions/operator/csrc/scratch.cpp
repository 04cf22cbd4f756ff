#include "common/operator.h"

namespace cd {

template <class T>
void scratch_scale(int64_t n, const T* x, float factor, T* out) {
    for (int64_t i = 0; i < n; i++) out[i] = narrow<T>(load(x[i]) * factor);
}
CD_OPERATOR(scratch_scale)

}  // namespace cd
