// The border to Python of the CUDA operators, kept apart from bindings.cpp because it is only there where they
// are. Tensors cross it as addresses and the stream as a number: the caller (one cuda.py per operator) has
// checked shapes, dtypes and layouts and keeps the tensors alive.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <tuple>
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

// Latents and how predictions are read: in Python a tuple of what the structures hold.
using Shape = std::tuple<int64_t, int64_t, int64_t, int64_t>;
using ReadingOf = std::tuple<Address, Address, Address>;

cd::cuda::Latents latents(const Shape& shape) {
    return {std::get<0>(shape), std::get<1>(shape), std::get<2>(shape), std::get<3>(shape)};
}
cd::cuda::Reading reading(const ReadingOf& how) {
    return {at(std::get<0>(how)), floats(std::get<1>(how)), floats(std::get<2>(how))};
}

int64_t latent_chunks(const Shape& shape) { return cd::cuda::latent_chunks(latents(shape)); }

void renoise(int dtype, const Shape& shape, Address x0, Address eps, Address alpha, Address sigma, Address x_t,
             Address stream) {
    cd::cuda::renoise(Dtype(dtype), latents(shape), at(x0), at(eps), floats(alpha), floats(sigma), floats(x_t),
                      at(stream));
}

void vsd(int dtype, const Shape& shape, Address x, Address teacher, Address fake, Address uncond, float guidance,
         const ReadingOf& how, Address direction, Address sums, Address partial, Address stream) {
    cd::cuda::vsd(Dtype(dtype),
                  {latents(shape), at(x), at(teacher), at(fake), at(uncond), guidance, reading(how), at(direction),
                   floats(sums), floats(partial)},
                  at(stream));
}

void vsd_gradient(int dtype, const Shape& shape, Address direction, Address slope, Address dx, Address stream) {
    cd::cuda::vsd_gradient(Dtype(dtype), latents(shape), at(direction), floats(slope), at(dx), at(stream));
}

void squared_error(int dtype, const Shape& shape, Address p, Address target, const ReadingOf& how, Address sums,
                   Address partial, Address stream) {
    cd::cuda::squared_error(
        Dtype(dtype), {latents(shape), at(p), at(target), reading(how), floats(sums), floats(partial)}, at(stream));
}

void squared_error_gradient(int dtype, const Shape& shape, Address grad, Address p, Address target,
                            const ReadingOf& how, Address dp, Address stream) {
    cd::cuda::squared_error_gradient(
        Dtype(dtype), {latents(shape), floats(grad), at(p), at(target), reading(how), at(dp)}, at(stream));
}

using HeadsOf = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t>;

cd::cuda::Heads heads(const HeadsOf& shape) {
    return {std::get<0>(shape), std::get<1>(shape), std::get<2>(shape), std::get<3>(shape), std::get<4>(shape)};
}
// `grid` is empty for full tables, or (frames, height, width, t, h, w).
cd::cuda::Rotary rotary(Address cos, Address sin, bool per_sample, const std::vector<int64_t>& grid) {
    if (grid.empty()) return {floats(cos), floats(sin), per_sample, 0, 0, 0, 0, 0, 0};
    return {floats(cos), floats(sin), per_sample, grid.at(0), grid.at(1), grid.at(2), grid.at(3), grid.at(4), grid.at(5)};
}

int64_t norm_rope_chunks(const HeadsOf& shape) { return cd::cuda::norm_rope_chunks(heads(shape)); }

void norm_rope_forward(int dtype, const HeadsOf& shape, Address x, Address weight, Address cos, Address sin,
                       bool per_sample, const std::vector<int64_t>& grid, float eps, Address result, Address rstd,
                       Address stream) {
    cd::cuda::norm_rope_forward(Dtype(dtype),
                                {heads(shape), at(x), floats(weight), rotary(cos, sin, per_sample, grid), eps,
                                 at(result), floats(rstd)},
                                at(stream));
}

void norm_rope_backward(int dtype, const HeadsOf& shape, Address grad, Address x, Address rstd, Address weight,
                        Address cos, Address sin, bool per_sample, const std::vector<int64_t>& grid, Address dx,
                        Address dweight, Address partial, Address stream) {
    cd::cuda::norm_rope_backward(Dtype(dtype),
                                 {heads(shape), at(grad), at(x), floats(rstd), floats(weight),
                                  rotary(cos, sin, per_sample, grid), at(dx), floats(dweight), floats(partial)},
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
    m.def("latent_chunks", &latent_chunks);
    m.def("renoise", &renoise, release);
    m.def("vsd", &vsd, release);
    m.def("vsd_gradient", &vsd_gradient, release);
    m.def("squared_error", &squared_error, release);
    m.def("squared_error_gradient", &squared_error_gradient, release);
    m.def("norm_rope_chunks", &norm_rope_chunks);
    m.def("norm_rope_forward", &norm_rope_forward, release);
    m.def("norm_rope_backward", &norm_rope_backward, release);
}
