#include "daemon/tier/rocks/part_frame.h"

#include <gtest/gtest.h>

#include "daemon/tier/store_harness.h"

namespace dyna {
namespace {

const PartId kPart{PartId::Kind::kSegment, 3, 4};

TEST(PartFrame, KeysSortAndSeparate) {
  const auto key = TestBlock::Key(1);
  EXPECT_EQ(PartKey(key, 1, kPart).size(), kPartKeyBytes);
  EXPECT_LT(PartKey(key, 1, kPart), PartKey(key, 256, kPart));
  EXPECT_NE(PartKey(key, 1, kPart), PartKey(key, 1, {PartId::Kind::kHistory, 3, 4}));
  EXPECT_NE(PartKey(key, 1, kPart), PartKey(key, 1, {PartId::Kind::kSegment, 4, 3}));
  const std::string context = RowKeyBytes({RowKey::Kind::kContext, ~uint64_t{0}, ~uint64_t{0}, 0});
  EXPECT_LT(context, RowKeyBytes({RowKey::Kind::kBasis, 0, 0, 0}));
  EXPECT_LT(RowKeyBytes({RowKey::Kind::kLearner, ~uint64_t{0}, 0, 0}),
            BlockRowKey(record::BlockKey()));
}

TEST(PartFrame, OpensOnlyWhatIsWhole) {
  const std::string key = PartKey(TestBlock::Key(1), 1, kPart);
  std::vector<std::byte> bytes(300), out(300);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i);
  const std::string value = PartFrame(key, bytes) +
                            std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  ASSERT_TRUE(OpenPart(key, value, out).ok());
  EXPECT_EQ(out, bytes);

  EXPECT_EQ(OpenPart(key, value, std::span(out).first(299)).code(), StatusCode::kInvalid);
  EXPECT_EQ(OpenPart(PartKey(TestBlock::Key(2), 1, kPart), value, out).code(),
            StatusCode::kInternal);
  EXPECT_EQ(OpenPart(PartKey(TestBlock::Key(1), 2, kPart), value, out).code(),
            StatusCode::kInternal);
  for (size_t n = 0; n < value.size(); ++n)
    ASSERT_EQ(OpenPart(key, value.substr(0, n), out).code(), StatusCode::kInternal) << n;
  for (size_t i = 0; i < value.size(); ++i) {
    std::string copy = value;
    copy[i] = static_cast<char>(copy[i] ^ (1 << (i % 8)));
    ASSERT_EQ(OpenPart(key, copy, out).code(), StatusCode::kInternal) << i;
  }
}

}  // namespace
}  // namespace dyna
