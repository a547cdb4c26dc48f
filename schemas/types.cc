#include "schemas/types.h"

namespace dyna {

std::string_view DTypeName(DType t) {
  switch (t) {
    case DType::kF32:
      return "f32";
    case DType::kF16:
      return "f16";
    case DType::kBf16:
      return "bf16";
    case DType::kE4m3:
      return "e4m3";
    case DType::kE5m2:
      return "e5m2";
  }
  return "?";
}

std::string_view QualityName(QualityClass q) {
  switch (q) {
    case QualityClass::kSmall:
      return "small";
    case QualityClass::kBalanced:
      return "balanced";
    case QualityClass::kHigh:
      return "high";
    case QualityClass::kExact:
      return "exact";
  }
  return "?";
}

std::string_view TierName(Tier t) {
  switch (t) {
    case Tier::kNone:
      return "none";
    case Tier::kDevice:
      return "device";
    case Tier::kHost:
      return "host";
    case Tier::kSpill:
      return "spill";
    case Tier::kBank:
      return "bank";
  }
  return "?";
}

}  // namespace dyna
