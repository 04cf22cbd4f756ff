// The border to Python of the CUDA operators, kept apart from bindings.cpp because it is only there where they
// are. Tensors cross it as addresses and the stream as a number: the caller (one cuda.py per operator) has
// checked shapes, dtypes and layouts and keeps the tensors alive.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <vector>

#include "cuda_operators.h"

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;
using cd::cuda::Dtype;
using cd::cuda::Modulation;
using cd::cuda::Stream;

void* at(Address a) { return reinterpret_cast<void*>(a); }
float* floats(Address a) { return reinterpret_cast<float*>(a); }

void adaln_forward(int dtype, int64_t groups, int64_t rows, int64_t width, Address x, Address y, Address gate,
                   int64_t gate_stride, Address shift, int64_t shift_stride, Address scale, int64_t scale_stride, float eps,
                   Address x_new, Address result, Address stats, Address stream) {
    cd::cuda::adaln_forward(Dtype(dtype),
                            {{groups, rows, width},
                             at(x),
                             at(y),
                             {floats(gate), gate_stride},
                             {floats(shift), shift_stride},
                             {floats(scale), scale_stride},
                             eps,
                             at(x_new),
                             at(result),
                             floats(stats)},
                            at(stream));
}

void adaln_backward(int dtype, int64_t groups, int64_t rows, int64_t width, Address grad, Address grad_x_new, Address x,
                    Address y, Address stats, Address gate, int64_t gate_stride, Address scale, int64_t scale_stride,
                    Address dx, Address dy, Address dgate, Address dshift, Address dscale, Address partial, Address stream) {
    cd::cuda::adaln_backward(Dtype(dtype),
                             {{groups, rows, width},
                              at(grad),
                              at(grad_x_new),
                              at(x),
                              at(y),
                              floats(stats),
                              {floats(gate), gate_stride},
                              {floats(scale), scale_stride},
                              at(dx),
                              at(dy),
                              floats(dgate),
                              floats(dshift),
                              floats(dscale),
                              floats(partial)},
                             at(stream));
}

}  // namespace

// Adds the submodule `cuda`.
void bind_cuda(py::module_& module) {
    py::module_ m = module.def_submodule("cuda", "Operators on CUDA devices.");
    const auto release = py::call_guard<py::gil_scoped_release>();
    m.def("adaln_chunks", &cd::cuda::adaln_chunks);
    m.def("adaln_forward", &adaln_forward, release);
    m.def("adaln_backward", &adaln_backward, release);
}
