// csrc/forward/builtins.cpp: arithmetic over sizes and numbers, as Python
// means it: `//` rounds down, `%` takes the divisor's sign, `/` is a float.
#include "builtins.h"

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

namespace torchgil {
namespace {

using c10::IValue;

// Numbers are compared and divided as long double: its 64 bits of mantissa
// hold every int64 and every double, so that 2**53 + 1 != 2.0**53 as in Python.
using Wide = long double;

bool is_integral(const IValue& v) {
  return v.isInt() || v.isBool();
}

bool both_integral(Args a) {
  return is_integral(a[0]) && is_integral(a[1]);
}

int64_t as_int(const IValue& v) {
  return v.isBool() ? static_cast<int64_t>(v.toBool()) : v.toInt();
}

double as_double(const IValue& v) {
  return v.isDouble() ? v.toDouble() : static_cast<double>(as_int(v));
}

Wide as_wide(const IValue& v) {
  return v.isDouble() ? v.toDouble() : static_cast<Wide>(as_int(v));
}

bool truthy(const IValue& v) {
  return v.isDouble() ? v.toDouble() != 0.0 : as_int(v) != 0;
}

int64_t checked_int(double value) {
  // 2**63 is a double; the largest int64 is not
  TORCH_CHECK(
      value >= -0x1p63 && value < 0x1p63,
      "a size of ",
      value,
      " does not fit into 64 bits");
  return static_cast<int64_t>(value);
}

int64_t floor_div(int64_t a, int64_t b) {
  TORCH_CHECK(b != 0, "integer division by zero");
  TORCH_CHECK(
      b != -1 || a != std::numeric_limits<int64_t>::min(),
      "a size does not fit into 64 bits");
  const auto quotient = a / b;
  return quotient - ((a % b != 0) && ((a < 0) != (b < 0)));
}

int64_t floor_mod(int64_t a, int64_t b) {
  TORCH_CHECK(b != 0, "integer modulo by zero");
  if (b == -1) { // INT64_MIN % -1 traps
    return 0;
  }
  const auto rest = a % b;
  return rest != 0 && ((rest < 0) != (b < 0)) ? rest + b : rest;
}

double floor_mod(double a, double b) {
  TORCH_CHECK(b != 0.0, "float modulo by zero");
  const auto rest = std::fmod(a, b);
  if (rest == 0.0) {
    return std::copysign(0.0, b);
  }
  return (rest < 0) != (b < 0) ? rest + b : rest;
}

double floor_div(double a, double b) {
  TORCH_CHECK(b != 0.0, "float floor division by zero");
  // a minus its rest divides exactly but for rounding; take the near integer
  const auto rest = std::fmod(a, b);
  auto quotient = (a - rest) / b;
  if (rest != 0.0 && (rest < 0) != (b < 0)) {
    quotient -= 1.0;
  }
  if (quotient == 0.0) {
    return std::copysign(0.0, a / b);
  }
  const auto low = std::floor(quotient);
  return quotient - low > 0.5 ? low + 1.0 : low;
}

int64_t int_pow(int64_t base, int64_t exponent) {
  int64_t result = 1;
  for (; exponent > 0; exponent >>= 1) {
    if (exponent & 1) {
      TORCH_CHECK(
          !__builtin_mul_overflow(result, base, &result),
          "a size does not fit into 64 bits");
    }
    TORCH_CHECK(
        exponent == 1 || !__builtin_mul_overflow(base, base, &base),
        "a size does not fit into 64 bits");
  }
  return result;
}

#define CHECKED(name, builtin, symbol)                 \
  IValue name(Args a) {                                \
    if (!both_integral(a)) {                           \
      return as_double(a[0]) symbol as_double(a[1]);   \
    }                                                  \
    int64_t result = 0;                                \
    TORCH_CHECK(                                       \
        !builtin(as_int(a[0]), as_int(a[1]), &result), \
        "a size does not fit into 64 bits");           \
    return result;                                     \
  }
CHECKED(add, __builtin_add_overflow, +)
CHECKED(sub, __builtin_sub_overflow, -)
CHECKED(mul, __builtin_mul_overflow, *)
#undef CHECKED

IValue truediv(Args a) {
  TORCH_CHECK(truthy(a[1]), "division by zero");
  return static_cast<double>(as_wide(a[0]) / as_wide(a[1]));
}

IValue floordiv(Args a) {
  if (both_integral(a)) {
    return floor_div(as_int(a[0]), as_int(a[1]));
  }
  return floor_div(as_double(a[0]), as_double(a[1]));
}

IValue mod(Args a) {
  if (both_integral(a)) {
    return floor_mod(as_int(a[0]), as_int(a[1]));
  }
  return floor_mod(as_double(a[0]), as_double(a[1]));
}

IValue power(Args a) {
  if (both_integral(a) && as_int(a[1]) >= 0) {
    return int_pow(as_int(a[0]), as_int(a[1]));
  }
  const double exponent = as_double(a[1]);
  TORCH_CHECK( // 0 ** -inf is inf, in Python as well
      truthy(a[0]) || exponent >= 0 || std::isinf(exponent),
      "zero to a negative power");
  return std::pow(as_double(a[0]), exponent);
}

IValue neg(Args a) {
  if (!is_integral(a[0])) {
    return -a[0].toDouble();
  }
  int64_t result = 0;
  TORCH_CHECK(
      !__builtin_sub_overflow(int64_t{0}, as_int(a[0]), &result),
      "a size does not fit into 64 bits");
  return result;
}

IValue positive(Args a) {
  return is_integral(a[0]) ? IValue(as_int(a[0])) : a[0];
}

IValue absolute(Args a) {
  return as_wide(a[0]) < 0 ? neg(a) : positive(a);
}

template <class Compare>
IValue compare(Args a) {
  return Compare()(as_wide(a[0]), as_wide(a[1]));
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
  const auto by = as_int(a[1]);
  TORCH_CHECK(by >= 0 && by < 63, "a shift by ", by, " bits");
  return mul({as_int(a[0]), int64_t{1} << by});
}

IValue right_shift(Args a) {
  const auto by = as_int(a[1]);
  TORCH_CHECK(by >= 0, "a shift by ", by, " bits");
  return as_int(a[0]) >> std::min<int64_t>(by, 63);
}

template <double (*function)(double)>
IValue to_int(Args a) {
  return is_integral(a[0]) ? as_int(a[0])
                           : checked_int(function(a[0].toDouble()));
}

template <double (*function)(double)>
IValue to_double(Args a) {
  return function(as_double(a[0]));
}

// Python rounds the exact decimal value, half to even; so does to_chars.
double round_to_digits(double value, int64_t digits) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      digits >= 0, "round() of a float to tens is not supported");
  // the smallest double has 1074 digits after its point: no more change it
  const auto places = static_cast<int>(std::min<int64_t>(digits, 1074));
  std::array<char, 1400> text{}; // 309 before the point, and those
  const auto end = text.data() + text.size();
  const auto written =
      std::to_chars(text.data(), end, value, std::chars_format::fixed, places);
  std::from_chars(text.data(), written.ptr, value);
  return value;
}

IValue round_half_even(Args a) {
  if (a.size() == 1 || a[1].isNone()) {
    return to_int<std::nearbyint>(a);
  }
  const auto digits = as_int(a[1]);
  if (!is_integral(a[0])) {
    return round_to_digits(a[0].toDouble(), digits);
  }
  if (digits >= 0) {
    return as_int(a[0]);
  }
  const auto unit = int_pow(10, -digits);
  const auto down = floor_div(as_int(a[0]), unit);
  const auto twice = 2 * floor_mod(as_int(a[0]), unit);
  return (down + (twice > unit || (twice == unit && (down & 1)))) * unit;
}

IValue as_float(Args a) {
  return as_double(a[0]);
}

IValue as_bool(Args a) {
  return truthy(a[0]);
}

IValue minimum(Args a) {
  return *std::min_element(
      a.begin(), a.end(), [](const auto& x, const auto& y) {
        return as_wide(x) < as_wide(y);
      });
}

// std::max_element keeps the first of equals, as Python does
IValue maximum(Args a) {
  return *std::max_element(
      a.begin(), a.end(), [](const auto& x, const auto& y) {
        return as_wide(x) < as_wide(y);
      });
}

IValue sum(Args a) {
  IValue total(int64_t{0});
  for (const auto& v : a[0].toListRef()) {
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
    expected *= size;
  }
  return int64_t{1};
}

IValue assert_true(Args a) {
  TORCH_CHECK(truthy(a[0]), a[1].toStringView());
  return {};
}

constexpr auto kBuiltins = std::to_array<std::pair<std::string_view, Builtin>>({
    {"abs", absolute},
    {"acos", to_double<std::acos>},
    {"add", add},
    {"and", bitwise<std::bit_and<>>},
    {"asin", to_double<std::asin>},
    {"assert", assert_true},
    {"atan", to_double<std::atan>},
    {"bool", as_bool},
    {"ceil", to_int<std::ceil>},
    {"cos", to_double<std::cos>},
    {"cosh", to_double<std::cosh>},
    {"dense", dense},
    {"eq", compare<std::equal_to<>>},
    {"float", as_float},
    {"floor", to_int<std::floor>},
    {"floordiv", floordiv},
    {"ge", compare<std::greater_equal<>>},
    {"getitem", get_item},
    {"gt", compare<std::greater<>>},
    {"int", to_int<std::trunc>},
    {"ite", if_then_else},
    {"le", compare<std::less_equal<>>},
    {"log2", to_double<std::log2>},
    {"lshift", left_shift},
    {"lt", compare<std::less<>>},
    {"max", maximum},
    {"min", minimum},
    {"mod", mod},
    {"mul", mul},
    {"ne", compare<std::not_equal_to<>>},
    {"neg", neg},
    {"not", logical_not},
    {"numel", numel},
    {"or", bitwise<std::bit_or<>>},
    {"pos", positive},
    {"pow", power},
    {"round", round_half_even},
    {"rshift", right_shift},
    {"sin", to_double<std::sin>},
    {"sinh", to_double<std::sinh>},
    {"size", size},
    {"sqrt", to_double<std::sqrt>},
    {"storage_offset", storage_offset},
    {"stride", stride},
    {"sub", sub},
    {"sum", sum},
    {"tan", to_double<std::tan>},
    {"tanh", to_double<std::tanh>},
    {"trunc", to_int<std::trunc>},
    {"truediv", truediv},
    {"truncf", to_double<std::trunc>},
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

} // namespace torchgil
