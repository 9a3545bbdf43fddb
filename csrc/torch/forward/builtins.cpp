// csrc/torch/forward/builtins.cpp: what export writes besides operators, over
// sizes and numbers, as Python means it.
#include "builtins.h"

#include "numbers.h"

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <compare>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

namespace torchgil::forward {
namespace {

using c10::IValue;

bool is_integral(const IValue& v) {
  return v.isInt() || v.isBool();
}

bool both_integral(Args a) {
  return is_integral(a[0]) && is_integral(a[1]);
}

int64_t as_int(const IValue& v) {
  TORCH_CHECK_TYPE(is_integral(v), "a ", v.tagKind(), " where an int must be");
  return v.isBool() ? static_cast<int64_t>(v.toBool()) : v.toInt();
}

double as_double(const IValue& v) {
  return v.isDouble() ? v.toDouble() : static_cast<double>(as_int(v));
}

bool truthy(const IValue& v) {
  return v.isDouble() ? v.toDouble() != 0.0 : as_int(v) != 0;
}

std::partial_ordering order(const IValue& x, const IValue& y) {
  if (x.isDouble()) {
    return y.isDouble() ? x.toDouble() <=> y.toDouble()
                        : 0 <=> numbers::compare(as_int(y), x.toDouble());
  }
  return y.isDouble() ? numbers::compare(as_int(x), y.toDouble())
                      : as_int(x) <=> as_int(y);
}

double plus(double a, double b) {
  return a + b;
}

double minus(double a, double b) {
  return a - b;
}

double times(double a, double b) {
  return a * b;
}

/// As ints where both are, else as floats.
template <
    int64_t (*of_ints)(int64_t, int64_t),
    double (*of_floats)(double, double)>
IValue arithmetic(Args a) {
  if (both_integral(a)) {
    return of_ints(as_int(a[0]), as_int(a[1]));
  }
  return of_floats(as_double(a[0]), as_double(a[1]));
}

IValue truediv(Args a) {
  if (both_integral(a)) {
    return numbers::divide(as_int(a[0]), as_int(a[1]));
  }
  return numbers::divide(as_double(a[0]), as_double(a[1]));
}

IValue power(Args a) {
  if (both_integral(a) && as_int(a[1]) >= 0) {
    return numbers::power(as_int(a[0]), as_int(a[1]));
  }
  return numbers::power(as_double(a[0]), as_double(a[1]));
}

IValue neg(Args a) {
  return a[0].isDouble() ? IValue(-a[0].toDouble())
                         : IValue(numbers::negative(as_int(a[0])));
}

IValue positive(Args a) {
  return is_integral(a[0]) ? IValue(as_int(a[0])) : a[0];
}

IValue absolute(Args a) {
  if (a[0].isDouble()) {
    return std::fabs(a[0].toDouble());
  }
  return as_int(a[0]) < 0 ? neg(a) : positive(a);
}

template <bool (*holds)(std::partial_ordering)>
IValue compare(Args a) {
  return holds(order(a[0], a[1]));
}

template <class Bitwise>
IValue bitwise(Args a) {
  if (a[0].isBool() && a[1].isBool()) {
    return static_cast<bool>(Bitwise()(as_int(a[0]), as_int(a[1])));
  }
  return Bitwise()(as_int(a[0]), as_int(a[1]));
}

IValue logical_not(Args a) {
  return !truthy(a[0]);
}

IValue left_shift(Args a) {
  return numbers::shift_left(as_int(a[0]), as_int(a[1]));
}

IValue right_shift(Args a) {
  return numbers::shift_right(as_int(a[0]), as_int(a[1]));
}

template <double (*function)(double)>
IValue to_int(Args a) {
  return is_integral(a[0]) ? as_int(a[0])
                           : numbers::to_int(function(as_double(a[0])));
}

template <double (*function)(double), bool can_overflow = false>
IValue math(Args a) {
  const auto argument = as_double(a[0]);
  return numbers::checked(argument, function(argument), can_overflow);
}

IValue round_half_even(Args a) {
  if (a.size() == 1 || a[1].isNone()) {
    return to_int<std::nearbyint>(a);
  }
  const auto digits = as_int(a[1]);
  return a[0].isDouble() ? IValue(numbers::round_to(a[0].toDouble(), digits))
                         : IValue(numbers::round_to(as_int(a[0]), digits));
}

IValue as_float(Args a) {
  return as_double(a[0]);
}

IValue as_bool(Args a) {
  return truthy(a[0]);
}

/// The first of equals, and of what cannot be compared, as Python has it.
IValue minimum(Args a) {
  return *std::min_element(
      a.begin(), a.end(), [](const auto& x, const auto& y) {
        return order(x, y) < 0;
      });
}

IValue maximum(Args a) {
  return *std::max_element(
      a.begin(), a.end(), [](const auto& x, const auto& y) {
        return order(x, y) < 0;
      });
}

/// torch.sym_min and sym_max: a float where one of the two is.
template <IValue (*choose)(Args)>
IValue symbolic(Args a) {
  const auto chosen = choose(a);
  return both_integral(a) ? chosen : IValue(as_double(chosen));
}

constexpr auto add = arithmetic<numbers::add, plus>;

IValue sum(Args a) {
  const auto terms = a[0].isList() ? a[0].toListRef()
                                   : c10::ArrayRef<IValue>(a.begin(), a.end());
  IValue total(int64_t{0});
  for (const auto& v : terms) {
    total = add({total, v});
  }
  return total;
}

IValue if_then_else(Args a) {
  return truthy(a[0]) ? a[1] : a[2];
}

IValue get_item(Args a) {
  const auto& list = a[0].toListRef();
  const auto count = static_cast<int64_t>(list.size());
  const auto index = a[1].toInt();
  TORCH_CHECK_INDEX(
      index >= -count && index < count,
      "index ",
      index,
      " is out of range for ",
      count,
      " values");
  return list[index < 0 ? index + count : index];
}

IValue size(Args a) {
  return a[0].toTensor().size(a[1].toInt());
}

IValue stride(Args a) {
  return a[0].toTensor().stride(a[1].toInt());
}

IValue numel(Args a) {
  return a[0].toTensor().numel();
}

IValue storage_offset(Args a) {
  return a[0].toTensor().storage_offset();
}

// Takes sizes, then strides: 1 if they are those of a dense tensor, in
// whatever order of its dimensions. torch's _eval_is_non_overlapping_and_dense.
IValue dense(Args a) {
  const auto rank = a.size() / 2;
  std::vector<std::pair<int64_t, int64_t>> dims; // (stride, size)
  for (size_t i = 0; i < rank; ++i) {
    dims.emplace_back(as_int(a[rank + i]), as_int(a[i]));
  }
  if (rank == 1) {
    return int64_t{dims[0].first == 1 || dims[0].second < 2};
  }
  std::stable_sort(dims.begin(), dims.end(), [](const auto& x, const auto& y) {
    return x.first < y.first;
  });
  int64_t expected = 1;
  for (const auto& [stride, size] : dims) {
    if (size != 1 && stride != expected) {
      return int64_t{0};
    }
    expected = numbers::multiply(expected, size);
  }
  return int64_t{1};
}

IValue assert_true(Args a) {
  TORCH_CHECK(truthy(a[0]), a[1].toStringView());
  return {};
}

constexpr auto kBuiltins = std::to_array<std::pair<std::string_view, Builtin>>({
    {"abs", absolute},
    {"acos", math<std::acos>},
    {"add", add},
    {"and", bitwise<std::bit_and<>>},
    {"asin", math<std::asin>},
    {"assert", assert_true},
    {"atan", math<std::atan>},
    {"bool", as_bool},
    {"ceil", to_int<std::ceil>},
    {"cos", math<std::cos>},
    {"cosh", math<std::cosh, true>},
    {"dense", dense},
    {"eq", compare<std::is_eq>},
    {"float", as_float},
    {"floor", to_int<std::floor>},
    {"floordiv", arithmetic<numbers::floor_divide, numbers::floor_divide>},
    {"ge", compare<std::is_gteq>},
    {"getitem", get_item},
    {"gt", compare<std::is_gt>},
    {"int", to_int<std::trunc>},
    {"ite", if_then_else},
    {"le", compare<std::is_lteq>},
    {"log2", math<std::log2>},
    {"lshift", left_shift},
    {"lt", compare<std::is_lt>},
    {"max", maximum},
    {"min", minimum},
    {"mod", arithmetic<numbers::modulo, numbers::modulo>},
    {"mul", arithmetic<numbers::multiply, times>},
    {"ne", compare<std::is_neq>},
    {"neg", neg},
    {"not", logical_not},
    {"numel", numel},
    {"or", bitwise<std::bit_or<>>},
    {"pos", positive},
    {"pow", power},
    {"round", round_half_even},
    {"rshift", right_shift},
    {"sin", math<std::sin>},
    {"sinh", math<std::sinh, true>},
    {"size", size},
    {"sqrt", math<std::sqrt>},
    {"storage_offset", storage_offset},
    {"stride", stride},
    {"sub", arithmetic<numbers::subtract, minus>},
    {"sum", sum},
    {"sym_max", symbolic<maximum>},
    {"sym_min", symbolic<minimum>},
    {"tan", math<std::tan>},
    {"tanh", math<std::tanh>},
    {"trunc", to_int<std::trunc>},
    {"truediv", truediv},
    {"xor", bitwise<std::bit_xor<>>},
});

} // namespace

Builtin find_builtin(std::string_view name) {
  for (const auto& [known, function] : kBuiltins) {
    if (known == name) {
      return function;
    }
  }
  return nullptr;
}

} // namespace torchgil::forward
