// Every CUDA operator on each of its paths, emulated, on buffers of exactly their size: what the address and thread
// sanitizers watch. Arguments are the numbers of the cases to run, without which all are; after the word "short" a result
// of each lacks its last elements, which the first must notice.
#include <cmath>
#include <cstdio>
#include <functional>
#include <iterator>
#include <string>
#include <vector>

#include "adaln_cuda.h"
#include "attention_cuda.h"
#include "device/numbers.h"
#include "dm_loss_cuda.h"
#include "qk_norm_rope_cuda.h"

using namespace cd::cuda;

namespace {

template <class T>
std::vector<T> filled(int64_t count, float scale = 1.0f) {
    std::vector<T> values(static_cast<size_t>(count));
    for (size_t i = 0; i < values.size(); i++) values[i] = narrow<T>(scale * std::sin(static_cast<float>(i)));
    return values;
}

// Elements that a case's result lacks.
int64_t missing = 0;

// Only the first kernel of a call under the thread sanitizer, to which each of thousands of blocks of sums of partial
// sums is 256 threads; they run for other shapes.
template <class Call>
void first_kernel(Call call) {
#if defined(__SANITIZE_THREAD__)
    std::vector<cd::emulator::Launch> launches;
    cd::emulator::recorded = &launches;
    call();
    cd::emulator::recorded = nullptr;
    cd::emulator::run(launches.at(0));
#else
    call();
#endif
}

template <class T>
bool all_finite(const std::vector<T>& values) {
    for (const T value : values) {
        if (!std::isfinite(widen(value))) return false;
    }
    return true;
}

// Rows wider than shared memory have their kernels keep them in global memory.
template <class T>
bool adaln(Dtype dtype, Rows shape, bool gated, bool x_new_used = true) {
    const int64_t count = shape.groups * shape.rows * shape.width, modulation = shape.groups * shape.width;
    auto x = filled<T>(count), y = filled<T>(gated ? count : 0), grad = filled<T>(count);
    auto shift = filled<float>(modulation), scale = shift, gate = filled<float>(gated ? modulation : 0);
    std::vector<T> x_new(y.size()), out(count - missing), dx(count), dy(y.size());
    std::vector<float> stats(2 * shape.groups * shape.rows), dgate(gate.size()), dshift(modulation), dscale(modulation);
    std::vector<float> partial(shape.groups * adaln_chunks(shape.groups, shape.rows) * (gated ? 3 : 2) * shape.width);
    const auto of = [&](std::vector<float>& values) {
        return Modulation{values.empty() ? nullptr : values.data(), shape.width};
    };
    adaln_forward(elements(dtype, dtype, dtype),
                  {shape, x.data(), y.data(), of(gate), of(shift), of(scale), 1e-6f, x_new.data(), out.data(),
                   stats.data(), false},
                  nullptr);
    const auto backward = [&] {
        adaln_backward(elements(dtype, dtype, dtype),
                       {shape, grad.data(), gated && x_new_used ? grad.data() : nullptr,
                        gated ? x_new.data() : x.data(), y.data(), stats.data(), of(gate), of(scale), dx.data(),
                        dy.data(), dgate.data(), dshift.data(), dscale.data(), partial.data(), false},
                       nullptr);
    };
    if (shape.width > 1024)
        first_kernel(backward);
    else
        backward();
    return all_finite(out) && all_finite(dx) && all_finite(dy) && all_finite(dgate) && all_finite(dscale);
}

enum class Rotation { none, full, factored };

// With full tables, with those of each sample factored over a grid of 1 x 2 x 3 tokens, or with none, where a sample has
// fewer keys, and they fewer heads, than there are queries.
template <class T>
bool norm_rope(Dtype dtype, int64_t batch, int64_t dim, Rotation rotation) {
    const bool factored = rotation == Rotation::factored, turned = rotation != Rotation::none;
    const int64_t length = 6;
    // Angles of a row and of a column; the frame has the others.
    const int t = static_cast<int>(dim / 2) - 5;
    auto weight = filled<float>(dim);
    auto cos = filled<float>(factored ? batch * (1 * t + 2 * 2 + 3 * 3) : length * dim), sin = cos;
    Tables tables{cos.data(), sin.data(), false, 0, 0, 0, 0, 0, 0};
    if (factored) tables = {cos.data(), sin.data(), true, 1, 2, 3, t, 2, 3};
    if (!turned) tables = {};
    std::vector<T> x[2], grad[2], out[2], dx[2];
    std::vector<float> rstd[2], dweight[2], partial[2];
    NormRope call{length, dim, tables, 1e-6f, {}, {}};
    for (int side = 0; side < 2; side++) {
        const bool fewer = side == 1 && !turned;
        const int64_t tokens = batch * (fewer ? 2 : length), heads = fewer ? 2 : 3, elements = tokens * heads * dim;
        x[side] = grad[side] = filled<T>(elements);
        out[side].resize(elements - (side == 1 ? missing : 0));
        dx[side].resize(elements);
        rstd[side].resize(tokens * heads);
        dweight[side].resize(dim);
        partial[side].resize(norm_rope_chunks(tokens) * dim);
        call.forward[side] = {tokens,        heads,            heads * dim,      x[side].data(),
                              weight.data(), out[side].data(), rstd[side].data()};
        call.backward[side] = {tokens,           heads,           heads * dim,          grad[side].data(),
                               x[side].data(),   weight.data(),   rstd[side].data(),    dx[side].data(),
                               dweight[side].data(), partial[side].data()};
    }
    norm_rope_forward(dtype, call, nullptr);
    norm_rope_backward(dtype, call, nullptr);
    return all_finite(out[0]) && all_finite(out[1]) && all_finite(dx[0]) && all_finite(dx[1]) && all_finite(dweight[1]);
}

// Alone: without mask, guidance, preconditioning and a factor of the signal.
template <class T>
bool losses(Dtype dtype, int64_t batch, int64_t channels, int64_t frames, int64_t area, bool alone) {
    const int64_t elements = channels * frames * area;
    auto x = filled<T>(batch * elements), other = filled<T>(batch * elements, 0.5f);
    auto per_sample = filled<float>(batch), coefficients = filled<float>(2 * batch), mask = filled<float>(batch * frames);
    std::vector<T> result(batch * elements - missing), gradient(batch * elements);
    std::vector<float> noisy(batch * elements), sums(3 * batch), partial(batch * dm_loss_blocks(elements) * 3);
    const auto unless_alone = [&](auto& values) { return alone ? nullptr : values.data(); };
    const FrameMask frame_mask{unless_alone(mask), frames, area};
    renoise(dtype,
            {batch, elements, x.data(), other.data(), unless_alone(per_sample), per_sample.data(), noisy.data()},
            nullptr);
    vsd(dtype,
        {batch, elements, x.data(), other.data(), x.data(), unless_alone(other), unless_alone(x), 3.0f,
         unless_alone(coefficients), frame_mask, result.data(), sums.data(), partial.data()},
        nullptr);
    vsd_gradient(dtype, batch, elements, result.data(), per_sample.data(), gradient.data(), nullptr);
    SquaredError call{batch, elements, x.data(), other.data(), unless_alone(x), unless_alone(coefficients), frame_mask,
                      nullptr, nullptr, sums.data(), partial.data()};
    squared_error(dtype, call, nullptr);
    call.grad = per_sample.data();
    call.dp = gradient.data();
    squared_error(dtype, call, nullptr);
    return all_finite(noisy) && all_finite(result) && all_finite(gradient) && all_finite(sums);
}

template <class T>
bool attention(Dtype dtype, int heads, int queries, int keys, int dim, bool lse_used) {
    const auto tensor = [&](int rows) { return filled<T>(static_cast<int64_t>(rows) * heads * dim); };
    auto q = tensor(queries), out = q, grad = q, dq = q, k = tensor(keys), v = k, dk = k, dv = k;
    const auto of = [&](std::vector<T>& x) {
        return Strided{x.data(), static_cast<int64_t>(x.size()), heads * dim, dim};
    };
    out.resize(out.size() - missing);
    out.shrink_to_fit();
    std::vector<float> lse(heads * queries), grad_lse(lse.size(), 0.5f);
    std::vector<float> scratch(static_cast<size_t>(heads) * attention_padded(queries) * 2);
    Attention call{};
    call.batch = 1, call.heads = heads, call.queries = queries, call.keys = keys, call.dim = dim, call.scale = 0.25f;
    call.q = of(q), call.k = of(k), call.v = of(v), call.out = of(out), call.lse = lse.data();
    attention_forward(dtype, call, nullptr);
    call.grad = of(grad), call.dq = of(dq), call.dk = of(dk), call.dv = of(dv);
    call.grad_lse = lse_used ? grad_lse.data() : nullptr, call.scratch = scratch.data();
    attention_backward(dtype, call, nullptr);
    return all_finite(out) && all_finite(lse) && all_finite(dq) && all_finite(dk) && all_finite(dv);
}

const std::function<bool()> kCases[] = {
    // Elements moved 16 bytes at a time, and one by one; rows that shared memory does not hold.
    [] { return adaln<float>(Dtype::fp32, {2, 11, 72}, true); },
    [] { return adaln<bf16>(Dtype::bf16, {2, 11, 72}, true); },
    [] { return adaln<fp16>(Dtype::fp16, {2, 11, 72}, true); },
    [] { return adaln<fp16>(Dtype::fp16, {1, 3, 72}, false); },
    [] { return adaln<bf16>(Dtype::bf16, {1, 9, 37}, true, false); },
    [] { return adaln<float>(Dtype::fp32, {1, 2, 25000}, true); },
    [] { return adaln<float>(Dtype::fp32, {1, 2, 25001}, false); },
    [] { return norm_rope<float>(Dtype::fp32, 2, 16, Rotation::factored); },
    [] { return norm_rope<fp16>(Dtype::fp16, 2, 16, Rotation::full); },
    [] { return norm_rope<bf16>(Dtype::bf16, 1, 16, Rotation::none); },
    [] { return norm_rope<fp16>(Dtype::fp16, 1, 22, Rotation::factored); },
    [] { return norm_rope<float>(Dtype::fp32, 1, 22, Rotation::none); },
    [] { return losses<float>(Dtype::fp32, 2, 4, 3, 20, false); },
    [] { return losses<bf16>(Dtype::bf16, 2, 4, 3, 20, false); },
    [] { return losses<bf16>(Dtype::bf16, 1, 4, 3, 20, true); },
    [] { return losses<fp16>(Dtype::fp16, 1, 3, 3, 27, false); },
    [] { return losses<float>(Dtype::fp32, 1, 241, 1, 1, true); },
    // Lengths that fill no tile, and a head narrower than its tile; wide heads, whose tiles are others.
    [] { return attention<bf16>(Dtype::bf16, 2, 70, 130, 56, true); },
    [] { return attention<fp16>(Dtype::fp16, 1, 40, 70, 128, false); },
};

}  // namespace

int main(int count, char** arguments) {
    std::vector<std::string> wanted(arguments + 1, arguments + count);
    if (!wanted.empty() && wanted[0] == "short") {
        missing = 8;
        wanted.erase(wanted.begin());
    }
    if (wanted.empty())
        for (size_t i = 0; i < std::size(kCases); i++) wanted.push_back(std::to_string(i));
    // All of them run, also after a planted bug has spoilt one.
    bool good = true;
    for (const std::string& number : wanted) good = kCases[std::stoul(number)]() && good;
    std::printf("%s in %zu cases\n", good ? "finite" : "not finite", wanted.size());
    return good ? 0 : 1;
}
