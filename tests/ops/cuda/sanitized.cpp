// Every CUDA operator once, emulated, on buffers of exactly their size: what the address and thread sanitizers
// watch. With the argument "short" one result lacks its last elements, which the first must notice.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "cuda_operators.h"
#include "device/numbers.h"

using namespace cd::cuda;

namespace {

template <class T>
std::vector<T> filled(int64_t count, float scale = 1.0f) {
    std::vector<T> values(static_cast<size_t>(count));
    for (size_t i = 0; i < values.size(); i++) values[i] = narrow<T>(scale * std::sin(static_cast<float>(i)));
    return values;
}

template <class T>
bool all_finite(const std::vector<T>& values) {
    for (const T value : values) {
        if (!std::isfinite(widen(value))) return false;
    }
    return true;
}

template <class T>
bool adaln(Dtype dtype, int64_t missing) {
    const Rows shape{2, 11, 72};
    const int64_t elements = shape.groups * shape.rows * shape.width, modulation = shape.groups * shape.width;
    auto x = filled<T>(elements), y = filled<T>(elements), grad = filled<T>(elements);
    auto gate = filled<float>(modulation), shift = gate, scale = gate;
    std::vector<T> x_new(elements), out(elements - missing), dx(elements), dy(elements);
    std::vector<float> stats(2 * shape.groups * shape.rows), dgate(modulation), dshift(modulation), dscale(modulation);
    std::vector<float> partial(shape.groups * adaln_chunks(shape.groups, shape.rows) * 3 * shape.width);
    const auto of = [&](std::vector<float>& values) { return Modulation{values.data(), shape.width}; };
    adaln_forward(dtype,
                  {shape, x.data(), y.data(), of(gate), of(shift), of(scale), 1e-6f, x_new.data(), out.data(),
                   stats.data()},
                  nullptr);
    adaln_backward(dtype,
                   {shape, grad.data(), grad.data(), x_new.data(), y.data(), stats.data(), of(gate), of(scale),
                    dx.data(), dy.data(), dgate.data(), dshift.data(), dscale.data(), partial.data()},
                   nullptr);
    return all_finite(out) && all_finite(dx) && all_finite(dy) && all_finite(dgate) && all_finite(dscale);
}

// With full tables, or with those of each sample factored over a grid of 1 x 2 x 3 tokens.
template <class T>
bool norm_rope(Dtype dtype, bool factored) {
    const int64_t batch = 2, length = 6, heads = 3, dim = 16, tokens = batch * length, elements = tokens * heads * dim;
    auto x = filled<T>(elements), grad = filled<T>(elements);
    auto weight = filled<float>(dim), cos = filled<float>(factored ? batch * (1 * 3 + 2 * 2 + 3 * 3) : length * dim), sin = cos;
    Tables tables{cos.data(), sin.data(), false, 0, 0, 0, 0, 0, 0};
    if (factored) tables = {cos.data(), sin.data(), true, 1, 2, 3, 3, 2, 3};
    std::vector<T> out[2] = {std::vector<T>(elements), std::vector<T>(elements)};
    std::vector<T> dx[2] = {std::vector<T>(elements), std::vector<T>(elements)};
    std::vector<float> rstd[2], dweight[2], partial[2];
    NormRope call{length, dim, tables, 1e-6f, {}, {}};
    for (int side = 0; side < 2; side++) {
        rstd[side].resize(tokens * heads);
        dweight[side].resize(dim);
        partial[side].resize(norm_rope_chunks(tokens) * dim);
        call.forward[side] = {tokens, heads, heads * dim, x.data(), weight.data(), out[side].data(), rstd[side].data()};
        call.backward[side] = {tokens,         heads,           heads * dim,      grad.data(),         x.data(),
                               weight.data(),  rstd[side].data(), dx[side].data(), dweight[side].data(), partial[side].data()};
    }
    norm_rope_forward(dtype, call, nullptr);
    norm_rope_backward(dtype, call, nullptr);
    return all_finite(out[0]) && all_finite(out[1]) && all_finite(dx[0]) && all_finite(dweight[1]);
}

template <class T>
bool losses(Dtype dtype) {
    const int64_t batch = 2, frames = 3, area = 20, elements = 4 * frames * area;
    auto x = filled<T>(batch * elements), other = filled<T>(batch * elements, 0.5f);
    auto per_sample = filled<float>(batch), coefficients = filled<float>(2 * batch), mask = filled<float>(batch * frames);
    std::vector<T> result(batch * elements), gradient(batch * elements);
    std::vector<float> noisy(batch * elements), sums(3 * batch), partial(batch * dm_loss_blocks(elements) * 3);
    renoise(dtype, {batch, elements, x.data(), other.data(), per_sample.data(), per_sample.data(), noisy.data()}, nullptr);
    vsd(dtype,
        {batch, elements, x.data(), other.data(), x.data(), other.data(), x.data(), 3.0f, coefficients.data(),
         {mask.data(), frames, area}, result.data(), sums.data(), partial.data()},
        nullptr);
    vsd_gradient(dtype, batch, elements, result.data(), per_sample.data(), gradient.data(), nullptr);
    SquaredError call{batch, elements, x.data(), other.data(), x.data(), coefficients.data(), {mask.data(), frames, area},
                      nullptr, nullptr, sums.data(), partial.data()};
    squared_error(dtype, call, nullptr);
    call.grad = per_sample.data();
    call.dp = gradient.data();
    squared_error(dtype, call, nullptr);
    return all_finite(noisy) && all_finite(result) && all_finite(gradient) && all_finite(sums);
}

template <class T>
bool attention(Dtype dtype, int heads, int queries, int keys, int dim) {
    const auto tensor = [&](int rows) { return filled<T>(static_cast<int64_t>(rows) * heads * dim); };
    auto q = tensor(queries), out = q, grad = q, dq = q, k = tensor(keys), v = k, dk = k, dv = k;
    const auto of = [&](std::vector<T>& x) {
        return Strided{x.data(), static_cast<int64_t>(x.size()), heads * dim, dim};
    };
    std::vector<float> lse(heads * queries), grad_lse(lse.size(), 0.5f);
    std::vector<float> scratch(static_cast<size_t>(heads) * attention_padded(queries) * 2);
    Attention call{};
    call.batch = 1, call.heads = heads, call.queries = queries, call.keys = keys, call.dim = dim, call.scale = 0.25f;
    call.q = of(q), call.k = of(k), call.v = of(v), call.out = of(out), call.lse = lse.data();
    attention_forward(dtype, call, nullptr);
    call.grad = of(grad), call.dq = of(dq), call.dk = of(dk), call.dv = of(dv);
    call.grad_lse = grad_lse.data(), call.scratch = scratch.data();
    attention_backward(dtype, call, nullptr);
    return all_finite(out) && all_finite(lse) && all_finite(dq) && all_finite(dk) && all_finite(dv);
}

}  // namespace

int main(int count, char** arguments) {
    const int64_t missing = count > 1 && std::strcmp(arguments[1], "short") == 0 ? 8 : 0;
    // All of them run, also after a planted bug has spoilt one.
    const bool results[] = {
        adaln<float>(Dtype::fp32, missing), adaln<bf16>(Dtype::bf16, 0), adaln<fp16>(Dtype::fp16, 0),
        norm_rope<float>(Dtype::fp32, true), norm_rope<fp16>(Dtype::fp16, false),
        losses<float>(Dtype::fp32), losses<bf16>(Dtype::bf16),
        // Lengths that fill no tile, and a head narrower than its tile; wide heads, whose tiles are others.
        attention<bf16>(Dtype::bf16, 2, 70, 130, 56), attention<fp16>(Dtype::fp16, 1, 40, 70, 128)};
    bool good = true;
    for (const bool result : results) good = good && result;
    std::puts(good ? "finite" : "not finite");
    return good ? 0 : 1;
}
