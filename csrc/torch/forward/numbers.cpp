// csrc/torch/forward/numbers.cpp: the arithmetic of Python's int and float, as
// CPython's Objects/longobject.c, floatobject.c and Modules/mathmodule.c have
// it. Nothing here is wider than a double: what long double is depends on the
// platform, and rounding to it first rounds twice.
#include "numbers.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cmath>
#include <limits>
#include <string>
#include <system_error>

namespace torchgil::forward::numbers {
namespace {

using Kind = NumberError::Kind;
__extension__ using Wide = unsigned __int128;

constexpr auto kLeast = std::numeric_limits<int64_t>::min();

[[noreturn]] void too_large() {
  TORCH_CHECK(false, "a size does not fit into 64 bits");
}

uint64_t magnitude(int64_t a) {
  return a < 0 ? -static_cast<uint64_t>(a) : static_cast<uint64_t>(a);
}

bool is_odd(double whole) {
  return std::fmod(std::fabs(whole), 2.0) == 1.0;
}

} // namespace

int64_t add(int64_t a, int64_t b) {
  int64_t result = 0;
  return __builtin_add_overflow(a, b, &result) ? (too_large(), 0) : result;
}

int64_t subtract(int64_t a, int64_t b) {
  int64_t result = 0;
  return __builtin_sub_overflow(a, b, &result) ? (too_large(), 0) : result;
}

int64_t multiply(int64_t a, int64_t b) {
  int64_t result = 0;
  return __builtin_mul_overflow(a, b, &result) ? (too_large(), 0) : result;
}

int64_t negative(int64_t a) {
  return subtract(0, a);
}

int64_t floor_divide(int64_t a, int64_t b) {
  if (b == 0) {
    throw NumberError(
        Kind::kZeroDivision, "integer division or modulo by zero");
  }
  if (b == -1) { // the least int64 by -1 traps
    return negative(a);
  }
  const auto quotient = a / b;
  return quotient - ((a % b != 0) && ((a < 0) != (b < 0)));
}

int64_t modulo(int64_t a, int64_t b) {
  if (b == 0) {
    throw NumberError(
        Kind::kZeroDivision, "integer division or modulo by zero");
  }
  if (b == -1) {
    return 0;
  }
  const auto rest = a % b;
  return rest != 0 && ((rest < 0) != (b < 0)) ? rest + b : rest;
}

double modulo(double a, double b) {
  if (b == 0.0) {
    throw NumberError(Kind::kZeroDivision, "float modulo by zero");
  }
  const auto rest = std::fmod(a, b);
  if (rest == 0.0) {
    return std::copysign(0.0, b);
  }
  return (rest < 0) != (b < 0) ? rest + b : rest;
}

double floor_divide(double a, double b) {
  if (b == 0.0) {
    throw NumberError(Kind::kZeroDivision, "float floor division by zero");
  }
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

double divide(double a, double b) {
  if (b == 0.0) {
    throw NumberError(Kind::kZeroDivision, "float division by zero");
  }
  return a / b;
}

double divide(int64_t a, int64_t b) {
  if (b == 0) {
    throw NumberError(Kind::kZeroDivision, "division by zero");
  }
  const auto above = magnitude(a), below = magnitude(b);
  constexpr auto kExact = uint64_t{1} << std::numeric_limits<double>::digits;
  if (above <= kExact && below <= kExact) { // both are doubles: rounds once
    return static_cast<double>(a) / static_cast<double>(b);
  }
  // Else a quotient of at least 55 bits, whose last one also stands for all
  // that was cut off: two more than a double has, so that it rounds as the
  // whole would. The dividend has at most 55 + 64 bits.
  const auto shift = std::max<int>(
      0,
      55 + static_cast<int>(std::bit_width(below)) -
          static_cast<int>(std::bit_width(above)));
  const auto dividend = static_cast<Wide>(above) << shift;
  auto quotient = static_cast<uint64_t>(dividend / below);
  quotient |= static_cast<uint64_t>(dividend % below != 0);
  const auto result = std::ldexp(static_cast<double>(quotient), -shift);
  return (a < 0) != (b < 0) ? -result : result;
}

int64_t power(int64_t base, int64_t exponent) {
  int64_t result = 1;
  for (; exponent > 0; exponent >>= 1) {
    if (exponent & 1) {
      result = multiply(result, base);
    }
    if (exponent > 1) {
      base = multiply(base, base);
    }
  }
  return result;
}

double power(double base, double exponent) {
  if (exponent == 0.0 || base == 1.0) {
    return 1.0;
  }
  if (std::isnan(base) || std::isnan(exponent)) {
    return base + exponent;
  }
  if (base == 0.0 && exponent < 0 && !std::isinf(exponent)) {
    throw NumberError(
        Kind::kZeroDivision, "0.0 cannot be raised to a negative power");
  }
  const bool finite = std::isfinite(base) && std::isfinite(exponent);
  if (finite && base < 0 && exponent != std::floor(exponent)) {
    throw NumberError(
        Kind::kValue,
        "a negative number to a fractional power is complex, and no size");
  }
  // C99 has what Python has for zeros and infinities. The magnitude alone is
  // raised, as CPython does it.
  const auto raised = std::pow(std::fabs(base), exponent);
  if (finite && std::isinf(raised)) {
    throw NumberError(Kind::kOverflow, "Numerical result out of range");
  }
  return std::signbit(base) && std::isfinite(exponent) && is_odd(exponent)
      ? -raised
      : raised;
}

int64_t shift_left(int64_t a, int64_t by) {
  if (by < 0) {
    throw NumberError(Kind::kValue, "negative shift count");
  }
  if (a == 0) {
    return 0;
  }
  if (by >= 63) {
    return a == -1 && by == 63 ? kLeast : (too_large(), 0);
  }
  return multiply(a, int64_t{1} << by);
}

int64_t shift_right(int64_t a, int64_t by) {
  if (by < 0) {
    throw NumberError(Kind::kValue, "negative shift count");
  }
  return a >> std::min<int64_t>(by, 63);
}

int64_t to_int(double whole) {
  if (std::isnan(whole)) {
    throw NumberError(Kind::kValue, "cannot convert float NaN to integer");
  }
  if (std::isinf(whole)) {
    throw NumberError(
        Kind::kOverflow, "cannot convert float infinity to integer");
  }
  // 2**63 is a double; the largest int64 is not
  TORCH_CHECK(
      whole >= -0x1p63 && whole < 0x1p63,
      "a size of ",
      whole,
      " does not fit into 64 bits");
  return static_cast<int64_t>(whole);
}

int64_t round_to(int64_t value, int64_t digits) {
  if (digits >= 0) {
    return value;
  }
  if (digits < -19) { // 10**20 is more than twice the largest
    return 0;
  }
  const auto given = magnitude(value);
  uint64_t unit = 1; // at most 10**19, which 64 bits hold without a sign
  for (auto i = digits; i < 0; ++i) {
    unit *= 10;
  }
  const auto down = given / unit, rest = given % unit, half = unit / 2;
  const auto up = rest > half || (rest == half && (down & 1) != 0);
  uint64_t rounded = 0;
  if (__builtin_mul_overflow(down + (up ? 1 : 0), unit, &rounded) ||
      rounded > magnitude(kLeast) - (value < 0 ? 0 : 1)) {
    too_large();
  }
  return static_cast<int64_t>(value < 0 ? -rounded : rounded);
}

namespace {

/// To tens, hundreds and so on, of a finite value of 0 or more.
double round_to_tens(double value, size_t tens) {
  if (tens > std::numeric_limits<double>::max_exponent10 + 1) {
    return 0.0;
  }
  std::array<char, 400> written{}; // the largest has 309 digits
  const auto whole = std::floor(value);
  const auto end = std::to_chars(
                       written.data(),
                       written.data() + written.size(),
                       whole,
                       std::chars_format::fixed,
                       0)
                       .ptr;
  std::string digits(tens + 1, '0'); // so that there is one to carry into
  digits.append(written.data(), end);
  const auto kept = digits.size() - tens;
  const auto half = std::string("5") + std::string(tens - 1, '0');
  const auto rest = digits.substr(kept);
  const bool tie = rest == half && whole == value;
  const bool up = tie ? (digits[kept - 1] - '0') % 2 == 1 : rest >= half;
  if (up) {
    auto place = kept - 1;
    for (; digits[place] == '9'; --place) {
      digits[place] = '0';
    }
    ++digits[place];
  }
  digits.replace(kept, tens, tens, '0');
  double rounded = 0.0;
  const auto read =
      std::from_chars(digits.data(), digits.data() + digits.size(), rounded);
  if (read.ec == std::errc::result_out_of_range) {
    throw NumberError(Kind::kOverflow, "rounded value too large to represent");
  }
  return rounded;
}

} // namespace

double round_to(double value, int64_t digits) {
  if (!std::isfinite(value)) {
    return value;
  }
  if (digits < 0) {
    // Of the least int64 there is no negative; more than 309 tens are alike.
    const auto tens = static_cast<size_t>(-std::max<int64_t>(digits, -400));
    return std::copysign(round_to_tens(std::fabs(value), tens), value);
  }
  // Python rounds the exact decimal value, half to even; so does to_chars. The
  // smallest double has 1074 digits after its point: no more change it.
  const auto places = static_cast<int>(std::min<int64_t>(digits, 1074));
  std::array<char, 1400> text{}; // 309 before the point, and those
  const auto written = std::to_chars(
      text.data(),
      text.data() + text.size(),
      value,
      std::chars_format::fixed,
      places);
  std::from_chars(text.data(), written.ptr, value);
  return value;
}

std::partial_ordering compare(int64_t a, double b) {
  if (std::isnan(b)) {
    return std::partial_ordering::unordered;
  }
  if (b >= 0x1p63) {
    return std::partial_ordering::less;
  }
  if (b < -0x1p63) {
    return std::partial_ordering::greater;
  }
  const auto whole = std::trunc(b);
  const auto order = a <=> static_cast<int64_t>(whole);
  return order != 0 ? std::partial_ordering(order) : 0.0 <=> (b - whole);
}

double checked(double argument, double result, bool can_overflow) {
  if (std::isnan(result) && !std::isnan(argument)) {
    throw NumberError(Kind::kValue, "math domain error");
  }
  if (std::isinf(result) && std::isfinite(argument)) {
    throw can_overflow ? NumberError(Kind::kOverflow, "math range error")
                       : NumberError(Kind::kValue, "math domain error");
  }
  return result;
}

} // namespace torchgil::forward::numbers
