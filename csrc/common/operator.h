// How a function becomes known to Python: by its own signature. CD_OPERATOR(adaln_forward), at the end of the file that
// defines it, is all that is written for it; bindings.cpp hands every function that is linked to Python.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "common/element.h"

namespace cd {

// Number of what the functions take. Raise it, and the one in ops/compiled.py, when the meaning of an argument
// changes: a module that was built before must not serve the new package, which would have it read other memory.
constexpr int INTERFACE = 2;

// One argument as it comes from Python. Tensors come as addresses.
struct Value {
    enum class Kind { integer, number, list, lists } kind;
    int64_t integer = 0;
    double number = 0.0;
    std::vector<int64_t> list = {};
    std::vector<std::vector<int64_t>> lists = {};
};

class Arguments;

// How a struct is read from the arguments: specialised where a function that takes it is registered.
template <class T>
struct Read;

// Hands the arguments of a call out in their order, each as the type that is asked for.
class Arguments {
  public:
    explicit Arguments(const std::vector<Value>& given) : values(given) {}

    template <class T>
    T next() {
        if constexpr (std::is_pointer_v<T>) {
            return reinterpret_cast<T>(static_cast<uintptr_t>(of(Value::Kind::integer).integer));
        } else if constexpr (std::is_same_v<T, bool>) {
            return of(Value::Kind::integer).integer != 0;
        } else if constexpr (std::is_integral_v<T> || std::is_enum_v<T>) {
            return static_cast<T>(of(Value::Kind::integer).integer);
        } else if constexpr (std::is_floating_point_v<T>) {
            return static_cast<T>(number());
        } else if constexpr (std::is_same_v<T, std::vector<int64_t>>) {
            return of(Value::Kind::list).list;
        } else if constexpr (std::is_same_v<T, std::vector<std::vector<int64_t>>>) {
            return of(Value::Kind::lists).lists;
        } else {
            return Read<T>::from(*this);
        }
    }

    void end() const {
        if (at != values.size()) {
            throw std::invalid_argument(std::to_string(values.size()) + " arguments given, " + std::to_string(at) + " taken");
        }
    }

  private:
    const std::vector<Value>& values;
    size_t at = 0;

    const Value& any() {
        if (at == values.size()) throw std::invalid_argument("more than " + std::to_string(at) + " arguments are taken");
        return values[at++];
    }

    const Value& of(Value::Kind kind) {
        const Value& value = any();
        if (value.kind != kind) throw std::invalid_argument("argument " + std::to_string(at - 1) + " is of another type");
        return value;
    }

    double number() {
        if (at < values.size() && values[at].kind == Value::Kind::integer) return static_cast<double>(any().integer);
        return of(Value::Kind::number).number;
    }
};

// A struct of such members, in this order.
template <class T, class... Members>
struct ReadMembers {
    static T from(Arguments& in) { return T{in.next<Members>()...}; }
};

// The same from a list of its members, addresses among them.
template <class T, class... Members>
struct ReadList {
    static T from(Arguments& in) {
        std::vector<Value> values;
        for (const int64_t one : in.next<std::vector<int64_t>>()) values.push_back({Value::Kind::integer, one});
        Arguments members(values);
        return ReadMembers<T, Members...>::from(members);
    }
};

// Calls a function with arguments of its own types; what returns nothing returns 0.
template <class Result, class... Parameters>
int64_t apply(Result (*function)(Parameters...), Arguments& in) {
    std::tuple<std::decay_t<Parameters>...> values{in.next<std::decay_t<Parameters>>()...};  // braces: in this order
    in.end();
    if constexpr (std::is_void_v<Result>) {
        std::apply(function, values);
        return 0;
    } else {
        return std::apply(function, values);
    }
}

// Of a template, the instance for the element that the first argument names; the numbers are those of ops/elements.py.
template <class F32, class BF16, class FP16>
int64_t apply_to_element(F32* fp32, BF16* bf16, FP16* fp16, Arguments& in) {
    switch (in.next<int>()) {
        case 0: return apply(fp32, in);
        case 1: return apply(bf16, in);
        case 2: return apply(fp16, in);
    }
    throw std::invalid_argument("element must be 0 (fp32), 1 (bf16) or 2 (fp16)");
}

// Element types, one for each parameter of a template, and the number by which Python names them: the number of each (see
// apply_to_element), the first times 1, the second times 4, the third times 16.
template <class... T>
struct Mix {
    static constexpr int number() {
        int all = 0, place = 1;
        ((all += place * (std::is_same_v<T, float> ? 0 : std::is_same_v<T, bf16> ? 1 : 2), place *= 4), ...);
        return all;
    }
    // The instance, of pick(T...).
    template <class Pick>
    static int64_t call(Pick pick, Arguments& in) {
        return apply(pick(T{}...), in);
    }
};

// Of a template over several types, the instance for the mix that the first argument names.
template <class... Mixes, class Pick>
int64_t apply_to_mix(Pick pick, Arguments& in) {
    const int wanted = in.next<int>();
    int64_t result = 0;
    if (!((Mixes::number() == wanted && (result = Mixes::call(pick, in), true)) || ...)) {
        throw std::invalid_argument("no kernel for elements " + std::to_string(wanted));
    }
    return result;
}

// A function that Python may call, of the module or, for CUDA devices, of its submodule.
struct Operator {
    using Call = int64_t (*)(Arguments&);

    const char* name;
    bool cuda;
    Call call;
    const Operator* next;
    // Of this module alone, whatever others of the same process hold.
    __attribute__((visibility("hidden"))) static inline const Operator* first = nullptr;

    Operator(const char* name_, bool cuda_, Call call_) : name(name_), cuda(cuda_), call(call_), next(first) { first = this; }
    Operator(const Operator&) = delete;
};

}  // namespace cd

// A template over the element, which is instantiated here.
#define CD_OPERATOR(name)                                                            \
    template decltype(name<float>) name<float>;                                      \
    template decltype(name<cd::bf16>) name<cd::bf16>;                                \
    template decltype(name<cd::fp16>) name<cd::fp16>;                                \
    static const cd::Operator name##_operator(#name, false, [](cd::Arguments& in) {  \
        return cd::apply_to_element(&name<float>, &name<cd::bf16>, &name<cd::fp16>, in); \
    });
// A template over several types, for these mixes of them. CD_SAME: all of one type, so many.
#define CD_MIXED_OPERATOR(name, ...)                                                                            \
    static const cd::Operator name##_operator(#name, false, [](cd::Arguments& in) {                            \
        return cd::apply_to_mix<__VA_ARGS__>([](auto... zero) { return &name<decltype(zero)...>; }, in);        \
    });
#define CD_SAME_2(T) cd::Mix<T, T>
#define CD_SAME_3(T) cd::Mix<T, T, T>
#define CD_SAME(n) CD_SAME_##n(float), CD_SAME_##n(cd::bf16), CD_SAME_##n(cd::fp16)
// Functions, the second for CUDA devices. `function` is `name` itself, or a lambda with parameters for Python.
#define CD_FUNCTION(name, function) \
    static const cd::Operator name##_operator(#name, false, [](cd::Arguments& in) { return cd::apply(+function, in); });
#define CD_CUDA_FUNCTION(name, function) \
    static const cd::Operator name##_operator(#name, true, [](cd::Arguments& in) { return cd::apply(+function, in); });
// Number of what the functions of one operator take, where it is not 1; cd::INTERFACE is that of all. Raise it, and the one in
// the operator's Python, for the same reason: what is built otherwise stays in use.
#define CD_INTERFACE(operator, number) CD_FUNCTION(operator##_interface, []() -> int64_t { return number; })
