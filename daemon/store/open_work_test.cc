// What is kept as writers come and go is what asking each of them would tell.
#include "daemon/store/open_work.h"

#include <gtest/gtest.h>

#include <memory>
#include <random>

#include "daemon/store/store_context.h"
#include "tests/support/seed.h"

namespace dyna {
namespace {

TEST(OpenWork, IsTheSumOfItsWriters) {
  std::mt19937_64 dice(testing::TestSeed());
  ContextSpec spec;
  spec.layers.resize(4);
  spec.ropes.resize(1);
  StoreContext contexts[2] = {{1, 7, spec, LearnerOptions{}}, {2, 7, spec, LearnerOptions{}}};

  struct Open {
    StoreContext* context;
    std::unique_ptr<Writer> writer;
  };
  std::vector<Open> open;
  OpenWork work;
  uint64_t begun = 0;
  for (int step = 0; step < 3000; ++step) {
    const size_t what = dice() % 4;
    if (what == 0 || open.empty()) {
      auto writer = std::make_unique<Writer>();
      const auto layer = static_cast<uint16_t>(dice() % 3);
      writer->shard = {layer, static_cast<uint16_t>(layer + 1 + dice() % 2), 0,
                       static_cast<uint16_t>(1 + dice() % 2)};
      writer->quality = dice() % 2 == 0 ? QualityClass::kSmall : QualityClass::kBalanced;
      writer->taken.resize(size_t{writer->shard.layer_end} - writer->shard.layer_begin);
      StoreContext& context = contexts[dice() % 2];
      work.Begin(context, *writer, {});
      ++begun;
      open.push_back({&context, std::move(writer)});
    } else {
      const size_t at = dice() % open.size();
      Writer& writer = *open[at].writer;
      const size_t layer = dice() % writer.taken.size();
      if (what == 1) {
        work.End(*open[at].context, writer);
        open.erase(open.begin() + static_cast<long>(at));
      } else if (writer.taken[layer]) {
        writer.taken[layer] = false;
        work.GiveBack(*open[at].context, writer, layer);
      } else {
        writer.taken[layer] = true;
        work.Take(*open[at].context, writer, layer);
      }
    }
    ASSERT_EQ(work.writers(), open.size());
    ASSERT_EQ(work.begun(), begun);
    size_t counted = 0;
    work.ForEach([&](const OpenWork::Kind& kind) {
      std::vector<uint32_t> left(kind.left.size());
      uint32_t writers = 0;
      for (const Open& o : open) {
        if (o.context != kind.context || o.writer->shard != kind.shard ||
            o.writer->quality != kind.quality)
          continue;
        ++writers;
        for (size_t l = 0; l < left.size(); ++l) left[l] += !o.writer->taken[l];
      }
      EXPECT_EQ(kind.left, left);
      EXPECT_EQ(kind.writers, writers);
      EXPECT_EQ(work.Find(*kind.context, kind.shard, kind.quality), &kind);
      counted += writers;
    });
    ASSERT_EQ(counted, open.size()) << "a kind without writers is none";
  }
}

}  // namespace
}  // namespace dyna
