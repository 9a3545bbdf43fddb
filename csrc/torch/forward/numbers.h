// csrc/torch/forward/numbers.h: the arithmetic of Python's int and float.
#pragma once

#include <compare>
#include <cstdint>
#include <stdexcept>

namespace torchgil::forward {

/// What Python raises for the same operation. The bindings make it of this.
class NumberError : public std::runtime_error {
 public:
  enum class Kind : uint8_t { kZeroDivision, kOverflow, kValue };

  NumberError(Kind kind, const char* what)
      : std::runtime_error(what), kind_(kind) {}
  Kind kind() const {
    return kind_;
  }

 private:
  Kind kind_;
};

// Each throws a NumberError where Python raises, and a c10::Error where
// Python's result is an int beyond 64 bits.
namespace numbers {

int64_t add(int64_t a, int64_t b);
int64_t subtract(int64_t a, int64_t b);
int64_t multiply(int64_t a, int64_t b);
int64_t negative(int64_t a);

/// `//` and `%`: rounds down, the rest has the divisor's sign.
int64_t floor_divide(int64_t a, int64_t b);
double floor_divide(double a, double b);
int64_t modulo(int64_t a, int64_t b);
double modulo(double a, double b);

/// `/`: of two ints the double that is nearest to their quotient.
double divide(int64_t a, int64_t b);
double divide(double a, double b);

/// `**`, for ints with an exponent of 0 or more.
int64_t power(int64_t base, int64_t exponent);
double power(double base, double exponent);

int64_t shift_left(int64_t a, int64_t by);
int64_t shift_right(int64_t a, int64_t by);

/// A whole double as an int.
int64_t to_int(double whole);

/// `round(value, digits)`, half to even; less than no digits: tens.
int64_t round_to(int64_t value, int64_t digits);
double round_to(double value, int64_t digits);

/// Exact: 2**53 + 1 is greater than 2.0**53.
std::partial_ordering compare(int64_t a, double b);

/// A function of `math`, whose result may be infinite where it says so.
double checked(double argument, double result, bool can_overflow = false);

} // namespace numbers
} // namespace torchgil::forward
