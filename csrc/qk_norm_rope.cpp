#include "qk_norm_rope.h"

#include <cmath>
#include <type_traits>

#include "common/operator.h"
#include "common/tile.h"

namespace cd {
namespace {

// Calls run(dim), as a constant for the head sizes in use: short loops are faster when their length is known.
template <class Run>
CD_INLINE void with_head_dim(int64_t dim, Run run) {
    if (dim == 128) {
        run(std::integral_constant<int64_t, 128>{});
    } else if (dim == 64) {
        run(std::integral_constant<int64_t, 64>{});
    } else {
        run(dim);
    }
}

// The angle of channel i stands at i, that of the channel it turns with `other` further, 0 if both turn by the same; null
// tables only normalise.
struct Turn {
    const float* cos;
    const float* sin;
    int64_t other;
};

// What all heads of a token share.
struct Shared {
    const float* weight;
    Turn turn;
};

// The same in the order in which channels of T are read, once for all heads: done anew for each of them, this takes longer
// than all the rest. `space` is for three heads.
template <class T, class V>
CD_INLINE Shared in_order(Shared shared, int64_t dim, [[maybe_unused]] float* space) {
    if constexpr (kInOrder<T, V>) {
        return shared;
    } else {
        const auto ordered = [](const float* from, int64_t n, float* to) __attribute__((always_inline)) {
            for (int64_t i = 0; i < n; i += kSize<V>) write<false>(read_as<T, V>(from + i), to + i);
            return to;
        };
        Turn turn = shared.turn;
        if (turn.cos != nullptr) {
            turn.cos = ordered(turn.cos, dim / 2 + turn.other, space + dim);
            turn.sin = ordered(turn.sin, dim / 2 + turn.other, space + 2 * dim);
        }
        return {ordered(shared.weight, dim, space), turn};
    }
}

// What interleaved heads consist of where others do of V: neighbours turn with each other, so that it is two floats at least.
template <class V>
using Pairs = std::conditional_t<std::is_same_v<V, float>, Two<float>, V>;
template <class P>
constexpr bool kOnePair = std::is_same_v<P, Two<float>>;

template <class P, class T>
CD_INLINE P get(const T* from) {
    if constexpr (kOnePair<P>) {
        return {load(from[0]), load(from[1])};
    } else {
        return read<P>(from);
    }
}
template <bool Streamed, class P, class T>
CD_INLINE void put(const P& v, T* to) {
    if constexpr (kOnePair<P>) {
        to[0] = narrow<T>(v.low), to[1] = narrow<T>(v.high);
    } else {
        write<Streamed>(v, to);
    }
}
template <class P>
CD_INLINE float total(const P& v) {
    if constexpr (kOnePair<P>) {
        return v.low + v.high;
    } else {
        return sum_of(v);
    }
}

template <class U, int... I>
CD_INLINE U exchanged_lanes(U v, std::integer_sequence<int, I...>) {
    return detail::shuffled(v, v, std::integer_sequence<int, (I ^ 1)...>{});
}
template <class U, int... I>
CD_INLINE U alternating(std::integer_sequence<int, I...>) {
    return U{(I % 2 == 0 ? -1.0f : 1.0f)...};
}

// Elements of T with the neighbours of each pair exchanged.
template <class T, class P>
CD_INLINE P exchanged(const P& v) {
    if constexpr (kOnePair<P> || !kInOrder<T, P>) {
        return {v.high, v.low};
    } else {
        const detail::Lanes<decltype(P::low)> lanes;
        return {exchanged_lanes(v.low, lanes), exchanged_lanes(v.high, lanes)};
    }
}

// -1 for the first of each pair, 1 for the second.
template <class T, class P>
CD_INLINE P signs() {
    using U = decltype(P::low);
    if constexpr (kOnePair<P>) {
        return {-1.0f, 1.0f};
    } else if constexpr (kInOrder<T, P>) {
        const U both = alternating<U>(detail::Lanes<U>{});
        return {both, both};
    } else {
        return {U{} - 1.0f, U{} + 1.0f};
    }
}

// An angle's cosine or sine for both of a pair.
template <class T, class P>
CD_INLINE P doubled(const float* from) {
    if constexpr (kOnePair<P>) {
        return {from[0], from[0]};
    } else {
        using U = decltype(P::low);
        const U v = detail::at<U>(from);
        if constexpr (!kInOrder<T, P>) return {v, v};
        const detail::Lanes<U> lanes;
        return {detail::in_turn<0>(v, v, lanes), detail::in_turn<1>(v, v, lanes)};
    }
}

// As in_order(), with sines so that a pair (a, b) turns to v cos + exchanged(v) sin or, for gradients, back.
template <class T, bool Back, class P>
CD_INLINE Shared in_pairs(Shared shared, int64_t dim, float* space) {
    const bool every = shared.turn.other != 0;
    float *weight = space, *cos = space + dim, *sin = space + 2 * dim;
    for (int64_t i = 0; i < dim; i += kSize<P>) {
        P w, c, s;
        if constexpr (kOnePair<P>) {
            w = get<P>(shared.weight + i);
            c = every ? get<P>(shared.turn.cos + i) : doubled<T, P>(shared.turn.cos + i / 2);
            s = every ? get<P>(shared.turn.sin + i) : doubled<T, P>(shared.turn.sin + i / 2);
        } else {
            w = read_as<T, P>(shared.weight + i);
            c = every ? read_as<T, P>(shared.turn.cos + i) : doubled<T, P>(shared.turn.cos + i / 2);
            s = every ? read_as<T, P>(shared.turn.sin + i) : doubled<T, P>(shared.turn.sin + i / 2);
        }
        s = s * signs<T, P>();
        put<false>(w, weight + i);
        put<false>(c, cos + i);
        put<false>(Back ? exchanged<T>(s) : s, sin + i);
    }
    return {weight, {cos, sin, 0}};
}

// Of interleaved heads, with what they share in_pairs().
template <bool Streamed, class P, class T>
CD_INLINE void head_forward_interleaved(const T* CD_RESTRICT x, const float* CD_RESTRICT weight, Turn turn, int64_t dim,
                                        float eps, T* CD_RESTRICT out, float* CD_RESTRICT rstd) {
    constexpr int kStep = kSize<P>;
    P squares(0.0f);
    for (int64_t i = 0; i < dim; i += kStep) {
        const P v = get<P>(x + i);
        squares += v * v;
    }
    const float r = 1.0f / std::sqrt(total(squares) / static_cast<float>(dim) + eps);
    *rstd = r;
    for (int64_t i = 0; i < dim; i += kStep) {
        const P n = get<P>(x + i) * P(r) * get<P>(weight + i);
        put<Streamed>(n * get<P>(turn.cos + i) + exchanged<T>(n) * get<P>(turn.sin + i), out + i);
    }
}

template <bool Streamed, class V, class T>
CD_INLINE void head_forward(const T* CD_RESTRICT x, const float* CD_RESTRICT weight, Turn turn, int64_t dim, float eps,
                            T* CD_RESTRICT out, float* CD_RESTRICT rstd) {
    constexpr int kStep = kSize<V>;
    const int64_t half = dim / 2;
    V squares(0.0f);
    for (int64_t i = 0; i < dim; i += kStep) {
        const V v = read<V>(x + i);
        squares += v * v;
    }
    const float r = 1.0f / std::sqrt(sum_of(squares) / static_cast<float>(dim) + eps);
    *rstd = r;
    const auto normed = [=](int64_t i) __attribute__((always_inline)) {
        return read<V>(x + i) * V(r) * read<V>(weight + i);
    };
    if (turn.cos == nullptr) {  // of any length, odd ones too
        for (int64_t i = 0; i < dim; i += kStep) write<Streamed>(normed(i), out + i);
        return;
    }
    for (int64_t i = 0; i < half; i += kStep) {
        const float *cos = turn.cos + i, *sin = turn.sin + i;
        const V a = normed(i), b = normed(half + i);
        write<Streamed>(a * read<V>(cos) - b * read<V>(sin), out + i);
        write<Streamed>(b * read<V>(cos + turn.other) + a * read<V>(sin + turn.other), out + half + i);
    }
}

// Calls run(v), v of what the halves of a head consist of: pairs of the widest vectors or of the narrowest, or channels.
template <class Dim, class Run>
CD_INLINE void with_channels(Dim dim, Run run) {
    if (dim % (2 * kSize<Pair<kLanes>>) == 0) {
        run(Pair<kLanes>(0.0f));
    } else if (dim % (2 * kSize<Pair<4>>) == 0) {
        run(Pair<4>(0.0f));
    } else {
        run(0.0f);
    }
}

// `space` is for three heads.
template <bool Streamed, bool Interleaved, class T>
CD_KERNEL void token_forward(const T* CD_RESTRICT x, const float* weight, Turn turn, int64_t heads, int64_t head_dim,
                             float eps, float* space, T* CD_RESTRICT out, float* CD_RESTRICT rstd) {
    with_head_dim(head_dim, [=](auto dim) __attribute__((always_inline)) {
        with_channels(dim, [=](auto v) __attribute__((always_inline)) {
            using V = decltype(v);
            if constexpr (Interleaved) {
                using P = Pairs<V>;
                const Shared shared = in_pairs<T, false, P>({weight, turn}, dim, space);
                for (int64_t h = 0; h < heads; h++) {
                    const int64_t at = h * dim;
                    head_forward_interleaved<Streamed, P>(x + at, shared.weight, shared.turn, dim, eps, out + at, rstd + h);
                }
            } else {
                const Shared shared = in_order<T, V>({weight, turn}, dim, space);
                for (int64_t h = 0; h < heads; h++) {
                    const int64_t at = h * dim;
                    head_forward<Streamed, V>(x + at, shared.weight, shared.turn, dim, eps, out + at, rstd + h);
                }
            }
        });
    });
}

// dn is the gradient before the rotation (the rotation transposed), n = x * r * weight:
// dx = r * (dn * weight - x * r * mean(dn * weight * x * r)), dweight += dn * x * r, each unless null (All: neither is). `space` is for one head,
// and like dweight in the order in which channels are read.
template <bool Streamed, bool All, class V, class T>
CD_INLINE void head_backward(const T* CD_RESTRICT grad, const T* CD_RESTRICT x, float r,
                             const float* CD_RESTRICT weight, Turn turn, int64_t dim, float* CD_RESTRICT space,
                             T* CD_RESTRICT dx, float* CD_RESTRICT dweight) {
    constexpr int kStep = kSize<V>;
    const int64_t half = dim / 2;
    V dots(0.0f), more_dots(0.0f);
    for (int64_t i = 0; i < half; i += kStep) {
        const V a = read<V>(grad + i), b = read<V>(grad + half + i);
        V dn = a, more_dn = b;
        if (turn.cos != nullptr) {
            const float *cos = turn.cos + i, *sin = turn.sin + i;
            dn = a * read<V>(cos) + b * read<V>(sin + turn.other);
            more_dn = b * read<V>(cos + turn.other) - a * read<V>(sin);
        }
        const V share = dn * read<V>(x + i) * V(r), more_share = more_dn * read<V>(x + half + i) * V(r);
        write<false>(dn, space + i);
        write<false>(more_dn, space + half + i);
        if (All || dweight != nullptr) {
            write<false>(read<V>(dweight + i) + share, dweight + i);
            write<false>(read<V>(dweight + half + i) + more_share, dweight + half + i);
        }
        dots += share * read<V>(weight + i);
        more_dots += more_share * read<V>(weight + half + i);
    }
    dots += more_dots;
    if (std::is_same_v<V, float> && dim % 2 != 0) {  // which nothing rotates
        const int64_t last = dim - 1;
        const V dn = read<V>(grad + last), share = dn * read<V>(x + last) * V(r);
        write<false>(dn, space + last);
        if (All || dweight != nullptr) write<false>(read<V>(dweight + last) + share, dweight + last);
        dots += share * read<V>(weight + last);
    }
    if (!All && dx == nullptr) return;
    const V mean(sum_of(dots) / static_cast<float>(dim));
    for (int64_t i = 0; i < dim; i += kStep) {
        const V dn = read<V>(space + i), w = read<V>(weight + i);
        write<Streamed>(V(r) * (dn * w - read<V>(x + i) * V(r) * mean), dx + i);
    }
}

// The same of interleaved heads, with what they share in_pairs(); space and dweight are in the order of T.
template <bool Streamed, bool All, class P, class T>
CD_INLINE void head_backward_interleaved(const T* CD_RESTRICT grad, const T* CD_RESTRICT x, float r,
                                         const float* CD_RESTRICT weight, Turn turn, int64_t dim, float* CD_RESTRICT space,
                                         T* CD_RESTRICT dx, float* CD_RESTRICT dweight) {
    constexpr int kStep = kSize<P>;
    P dots(0.0f);
    for (int64_t i = 0; i < dim; i += kStep) {
        const P g = get<P>(grad + i), dn = g * get<P>(turn.cos + i) + exchanged<T>(g) * get<P>(turn.sin + i);
        const P share = dn * get<P>(x + i) * P(r);
        put<false>(dn, space + i);
        if (All || dweight != nullptr) put<false>(get<P>(dweight + i) + share, dweight + i);
        dots += share * get<P>(weight + i);
    }
    if (!All && dx == nullptr) return;
    const P mean(total(dots) / static_cast<float>(dim));
    for (int64_t i = 0; i < dim; i += kStep) {
        const P dn = get<P>(space + i), w = get<P>(weight + i);
        put<Streamed>(P(r) * (dn * w - get<P>(x + i) * P(r) * mean), dx + i);
    }
}

// The token's own sum comes first: thousands of terms added one after the other would cost digits. `space` is
// for five heads.
template <bool Streamed, bool Interleaved, bool All, class T>
CD_KERNEL void token_backward(const T* CD_RESTRICT grad, const T* CD_RESTRICT x, const float* CD_RESTRICT rstd,
                              const float* weight, Turn turn, int64_t heads, int64_t head_dim,
                              float* CD_RESTRICT space, T* CD_RESTRICT dx, float* CD_RESTRICT dweight) {
    with_head_dim(head_dim, [=](auto dim) __attribute__((always_inline)) {
        float *more = space + 2 * dim, *sum = !All && dweight == nullptr ? nullptr : space + dim;
        if (All || sum != nullptr) std::fill(sum, sum + dim, 0.0f);
        with_channels(dim, [=](auto v) __attribute__((always_inline)) {
            using V = decltype(v);
            if constexpr (Interleaved) {
                using P = Pairs<V>;
                const Shared shared = in_pairs<T, true, P>({weight, turn}, dim, more);
                for (int64_t h = 0; h < heads; h++) {
                    const int64_t at = h * dim;
                    head_backward_interleaved<Streamed, All, P>(grad + at, x + at, rstd[h], shared.weight, shared.turn, dim, space,
                                                           All || dx != nullptr ? dx + at : nullptr, sum);
                }
                for (int64_t i = 0; (All || sum != nullptr) && i < dim; i += kSize<V>) {
                    write_as<T>(read_as<T, V>(dweight + i) + read<V>(sum + i), dweight + i);
                }
            } else {
                const Shared shared = in_order<T, V>({weight, turn}, dim, more);
                for (int64_t h = 0; h < heads; h++) {
                    const int64_t at = h * dim;
                    head_backward<Streamed, All, V>(grad + at, x + at, rstd[h], shared.weight, shared.turn, dim, space,
                                               All || dx != nullptr ? dx + at : nullptr, sum);
                }
                for (int64_t i = 0; (All || sum != nullptr) && i < dim; i += kSize<V>) {
                    write_as<T>(read_as<T, V>(dweight + i) + read<V>(sum + i), dweight + i);
                }
            }
        });
    });
}

// The cosines and sines of one token. A factored table is put together in `space`, once for all heads; of the token
// after the last one only the part of w is new, unless a line of the grid ends.
class Turns {
  public:
    explicit Turns(const Heads& shape)
        : turn{nullptr, nullptr, shape.head_dim / 2}, space(shape.head_dim) {}

    Turn of(const Heads& shape, const Tables& tables, int64_t token) {
        if (tables.cos == nullptr) return turn;
        if (!tables.factored()) {
            const int64_t at = (tables.per_sample ? token : token % shape.length) * shape.head_dim;
            return {tables.cos + at, tables.sin + at, shape.head_dim / 2};
        }
        if (token == last + 1 && w + 1 < tables.width) {
            w++;
        } else {
            start_line(shape, tables, token);
        }
        last = token;
        const int64_t th = tables.t + tables.h;
        std::copy_n(cos_w + w * tables.w, tables.w, space.get() + th);
        std::copy_n(sin_w + w * tables.w, tables.w, space.get() + shape.head_dim / 2 + th);
        return turn;
    }

  private:
    Turn turn;
    Scratch<float> space;  // half of a head each: both halves turn by the same angles
    int64_t last = -2, w = 0;
    const float *cos_w = nullptr, *sin_w = nullptr;

    void start_line(const Heads& shape, const Tables& tables, int64_t token) {
        const int64_t sample = tables.per_sample ? token / shape.length : 0, line = token % shape.length / tables.width;
        const int64_t t = line / tables.height, h = line % tables.height;
        w = token % shape.length % tables.width;
        float *to_cos = space.get(), *to_sin = to_cos + shape.head_dim / 2;
        cos_w = gather(tables.cos + sample * tables.length(), tables, t, h, to_cos);
        sin_w = gather(tables.sin + sample * tables.length(), tables, t, h, to_sin);
        turn = {to_cos, to_sin, 0};
    }

    // Returns the table of w.
    static const float* gather(const float* from, const Tables& tables, int64_t t, int64_t h, float* to) {
        const float* at_h = from + tables.frames * tables.t;
        std::copy_n(from + t * tables.t, tables.t, to);
        std::copy_n(at_h + h * tables.h, tables.h, to + tables.t);
        return at_h + tables.height * tables.h;
    }
};

}  // namespace

template <class T>
void norm_rope_forward(Heads shape, const T* x, const float* weight, Tables tables, float eps, T* out,
                       float* rstd) {
    const int64_t size = shape.token(), elements = shape.tokens() * size;
    const auto run = [=](auto streamed, auto interleaved) {
#pragma omp parallel if (elements >= kParallelElements)
        {
            Turns turns(shape);
            const Scratch<float> space(3 * shape.head_dim);
#pragma omp for schedule(static)
            for (int64_t t = 0; t < shape.tokens(); t++) {
                token_forward<decltype(streamed)::value, decltype(interleaved)::value>(
                    x + t * shape.stride, weight, turns.of(shape, tables, t), shape.heads, shape.head_dim, eps, space.get(),
                    out + t * size, rstd + t * shape.heads);
            }
            stream_end();
        }
    };
    with_flag(streams(out, elements, shape.head_dim / 2), [&](auto streamed) {
        with_flag(tables.turns_neighbours(), [&](auto interleaved) { run(streamed, interleaved); });
    });
}

template <class T>
void norm_rope_backward(Heads shape, const T* grad, const T* x, const float* rstd, const float* weight,
                        Tables tables, T* dx, float* dweight) {
    const int64_t size = shape.token(), elements = shape.tokens() * size, dim = shape.head_dim;
    const int64_t chunks = (shape.tokens() + kRowsPerChunk - 1) / kRowsPerChunk;
    const Scratch<float> partial(dweight == nullptr ? 0 : chunks * dim);
    const auto run = [=, &partial](auto streamed, auto interleaved, auto all) {
#pragma omp parallel if (elements >= kParallelElements)
        {
            Turns turns(shape);
            const Scratch<float> space(5 * dim);
#pragma omp for schedule(static)
            for (int64_t c = 0; c < chunks; c++) {
                float* sum = dweight == nullptr ? nullptr : partial.get() + c * dim;
                if (sum != nullptr) std::fill(sum, sum + dim, 0.0f);
                const int64_t last = std::min(shape.tokens(), (c + 1) * kRowsPerChunk);
                for (int64_t t = c * kRowsPerChunk; t < last; t++) {
                    token_backward<decltype(streamed)::value, decltype(interleaved)::value, decltype(all)::value>(
                        grad + t * size, x + t * shape.stride, rstd + t * shape.heads, weight,
                        turns.of(shape, tables, t), shape.heads, dim, space.get(), dx == nullptr ? nullptr : dx + t * size,
                        sum);
                }
            }
            stream_end();
        }
    };
    with_flag(streams(dx, elements, dim / 2), [&](auto streamed) {
        with_flag(tables.turns_neighbours(), [&](auto interleaved) {
            with_flag(dx != nullptr && dweight != nullptr, [&](auto all) { run(streamed, interleaved, all); });
        });
    });
    if (dweight != nullptr) reduce_chunks(partial.get(), 1, chunks, dim, dweight);
}

template <>
struct Read<Heads> : ReadMembers<Heads, int64_t, int64_t, int64_t, int64_t, int64_t> {};
// cos, sin; 1 for tables of each sample + 2 for interleaved ones; and the grid, a list that is empty for full tables, or
// (frames, height, width, t, h, w).
template <>
struct Read<Tables> {
    static Tables from(Arguments& in) {
        Tables tables{};
        tables.cos = in.next<const float*>();
        tables.sin = in.next<const float*>();
        const int how = in.next<int>();
        tables.per_sample = how & 1;
        tables.interleaved = how & 2;
        const auto grid = in.next<std::vector<int64_t>>();
        if (grid.empty()) return tables;
        return {tables.cos,  tables.sin, tables.per_sample, grid.at(0), grid.at(1),
                grid.at(2), grid.at(3), grid.at(4),        grid.at(5), tables.interleaved};
    }
};

CD_OPERATOR(norm_rope_forward)
CD_OPERATOR(norm_rope_backward)
CD_INTERFACE(qk_norm_rope, 2)

}  // namespace cd
