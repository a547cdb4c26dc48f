#include "daemon/policy/price_book.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

#include "daemon/policy/log2_byte.h"
#include "daemon/policy/policy_testing.h"
#include "daemon/policy/price_steps.h"

namespace dyna {
namespace {

// Segments of one layer with any statistics, as a store would hold them.
class Pool {
 public:
  Pool(bool omega, QualityClass quality, int heads = 2, bool basis = true)
      : spec_(testing::SmallSpec(1, heads)) {
    model_.shape = &spec_.layers[0];
    if (basis) model_.basis = testing::FallingBasis(heads, 64);
    omega_k_.assign(static_cast<size_t>(heads), 0);
    omega_v_.assign(static_cast<size_t>(heads), 0);
    for (size_t h = 0; h < omega_k_.size(); ++h) omega_k_[h] = static_cast<int16_t>(7 * h);
    if (omega) model_.omega = {omega_k_, omega_v_};
    std::vector<CellLadder> cells;
    for (int h = 0; h < heads; ++h) cells.push_back(CompressingCell(model_, h, quality));
    ladders_ = std::make_unique<LadderSet>(model_.basis, std::move(cells));
  }

  struct Item {
    std::vector<record::Cell> cells;
    uint64_t block = 0, tenant = 0;
    int16_t log2_h = 0;
    bool observed = true, frozen = false;
  };
  Item& AddItem(std::mt19937_64& dice, int spread) {
    Item item;
    item.block = dice();
    for (int h = 0; h < spec_.layers[0].kv_heads; ++h) {
      record::Cell cell;
      cell.k_kind = ladders_->cell(h).k.rungs()[0].k_kind;
      cell.v_kind = ladders_->cell(h).pair ? ladders_->cell(h).k.rungs()[0].v_kind
                                           : ladders_->cell(h).v.rungs()[0].v_kind;
      const auto any = [&] {
        return static_cast<int8_t>(spread ? static_cast<int>(dice() % (2 * spread)) - spread : 0);
      };
      cell.log2_w_k = any();
      cell.log2_w_v = any();
      cell.log2_energy_k = any();
      cell.log2_energy_v = any();
      item.cells.push_back(cell);
    }
    return items.emplace_back(item);
  }
  PricedSegment Priced(const Item& item) const {
    return {ladders_.get(), item.cells, 0, 0, item.block, item.log2_h, item.observed, item.frozen};
  }
  // One round of demotion, as the store makes it. Returns the steps taken.
  int Demote(PriceBook* book) {
    int moved = 0;
    for (Item& item : items) {
      std::vector<TilePlan> plan(item.cells.size());
      Decide(Priced(item), book->price(item.tenant), false, book->options(), plan);
      const int64_t before = TileBytes(Priced(item));
      book->Remove(item.tenant, Priced(item));
      for (size_t h = 0; h < plan.size(); ++h) {
        moved += plan[h].k_kind != item.cells[h].k_kind || plan[h].v_kind != item.cells[h].v_kind;
        item.cells[h].k_kind = plan[h].k_kind;
        item.cells[h].v_kind = plan[h].v_kind;
      }
      EXPECT_LE(TileBytes(Priced(item)), before) << "only ever down";
      book->Add(item.tenant, Priced(item));
    }
    return moved;
  }
  int64_t Bytes() const {
    int64_t sum = 0;
    for (const Item& item : items) sum += TileBytes(Priced(item));
    return sum;
  }
  bool AllAtFloor() const {
    for (const Item& item : items) {
      if (item.frozen) continue;
      bool at = true;
      ForEachUnit(Priced(item), [&](const PricedUnit& unit, size_t) {
        at &= unit.cell->RungOf(*unit.ladder, unit.k_kind, unit.v_kind) >= unit.floor;
      });
      if (!at) return false;
    }
    return true;
  }
  const LadderSet& ladders() const { return *ladders_; }
  std::vector<Item> items;

 private:
  ContextSpec spec_;
  LayerModel model_;
  std::vector<int16_t> omega_k_, omega_v_;
  std::unique_ptr<LadderSet> ladders_;
};

TEST(PriceBook, NeverAboveBudgetForAnyStatistics) {
  auto dice = testing::Dice("price");
  for (int round = 0; round < 120; ++round) {
    const QualityClass quality = round % 3 ? QualityClass::kBalanced : QualityClass::kSmall;
    Pool pool(round % 2, quality, 1 + round % 3, round % 5 != 0);
    PriceBook book;
    const int spread = std::array{0, 1, 20, 127}[dice() % 4];
    for (int i = 0; i < 200; ++i) {
      Pool::Item& item = pool.AddItem(dice, spread);
      item.log2_h = static_cast<int16_t>(dice() % 80);
      item.observed = dice() % 2;
      item.frozen = dice() % 16 == 0;
      item.tenant = dice() % 3;
      book.Add(item.tenant, pool.Priced(item));
    }
    ASSERT_EQ(book.bytes(), pool.Bytes());
    for (int step = 0; step < 5; ++step) {
      const int64_t budget = static_cast<int64_t>(static_cast<double>(pool.Bytes()) *
                                                  std::uniform_real_distribution<>(.3, 1.05)(dice));
      const bool fits = book.Solve(budget);
      const int64_t promised = book.projected();
      pool.Demote(&book);
      EXPECT_EQ(book.bytes(), pool.Bytes());
      EXPECT_EQ(book.bytes(), promised) << "what a solve promises is exact";
      EXPECT_EQ(fits, pool.Bytes() <= budget);
      EXPECT_TRUE(fits || pool.AllAtFloor());
      EXPECT_EQ(pool.Demote(&book), 0) << "one round takes every step below the price";
    }
    for (auto& item : pool.items) book.Remove(item.tenant, pool.Priced(item));
    EXPECT_EQ(book.bytes(), 0);
    EXPECT_EQ(book.projected(), 0);
  }
}

TEST(PriceBook, MoreImportanceNeverFewerBits) {
  auto dice = testing::Dice("importance");
  for (bool omega : {false, true}) {
    Pool pool(omega, QualityClass::kSmall, 1);
    Pool::Item& item = pool.AddItem(dice, 0);
    for (Price price = -3000; price < 6000; price += 97) {
      uint32_t last_k = 0, last_v = 0;
      for (int w = -128; w <= 127; w += 3) {
        item.cells[0].log2_w_k = item.cells[0].log2_w_v = static_cast<int8_t>(w);
        TilePlan plan;
        Decide(pool.Priced(item), price, false, {}, {&plan, 1});
        const CellLadder& cell = pool.ladders().cell(0);
        EXPECT_GE(cell.k_bytes[plan.k_kind], last_k);
        EXPECT_GE(cell.v_bytes[plan.v_kind], last_v);
        last_k = cell.k_bytes[plan.k_kind];
        last_v = cell.v_bytes[plan.v_kind];
      }
    }
  }
}

// What a unit costs on a rung, as the ladder's rounded slopes have it.
double CostOf(const PricedUnit& unit, int rung) {
  double cost = 0;
  for (int r = 0; r < rung; ++r) {
    const double bytes = static_cast<double>(KindsAt(unit, r).bytes - KindsAt(unit, r + 1).bytes);
    cost +=
        bytes * FromLog2Byte(unit.weight + unit.ladder->rungs()[static_cast<size_t>(r)].log2_slope);
  }
  return cost;
}

TEST(PriceBook, WithinOneStepOfBruteForce) {
  auto dice = testing::Dice("brute force");
  for (int round = 0; round < 60; ++round) {
    Pool pool(round % 2, QualityClass::kBalanced, 1);
    PriceOptions options;
    options.slack = 0;
    PriceBook book(options);
    const int count = round % 2 ? 2 : 4;  // 4 units each: 6 x 3 and 5 rungs
    for (int i = 0; i < count; ++i) book.Add(0, pool.Priced(pool.AddItem(dice, 24)));
    std::vector<PricedUnit> units;
    for (auto& item : pool.items)
      ForEachUnit(pool.Priced(item), [&](const PricedUnit& u, size_t) { units.push_back(u); });

    const int64_t floor = book.floor_bytes();
    const int64_t budget =
        floor + static_cast<int64_t>(dice() % static_cast<uint64_t>(book.bytes() - floor + 1));
    double best = 1e300, step = 0;
    std::vector<int> rungs(units.size(), 0);
    for (;;) {  // every combination
      double cost = 0;
      int64_t bytes = 0;
      for (size_t u = 0; u < units.size(); ++u) {
        cost += CostOf(units[u], rungs[u]);
        bytes += KindsAt(units[u], rungs[u]).bytes;
      }
      if (bytes <= budget) best = std::min(best, cost);
      size_t u = 0;
      while (u < units.size() && rungs[u] == units[u].floor) rungs[u++] = 0;
      if (u == units.size()) break;
      ++rungs[u];
    }
    ASSERT_TRUE(book.Solve(budget));
    pool.Demote(&book);
    ASSERT_LE(pool.Bytes(), budget);
    double got = 0;
    size_t at = 0;
    for (auto& item : pool.items)
      ForEachUnit(pool.Priced(item), [&](const PricedUnit& u, size_t) {
        const int rung = u.cell->RungOf(*u.ladder, u.k_kind, u.v_kind);
        got += CostOf(units[at], rung);
        if (rung > 0)  // the last step taken is the dearest one that undoing could save
          step = std::max(step, CostOf(units[at], rung) - CostOf(units[at], rung - 1));
        ++at;
      });
    EXPECT_GE(got, best * (1 - 1e-9));
    EXPECT_LE(got, best + step + 1e-9) << "round " << round;
  }
}

// Attention over twice the length with the same relative x: the histogram of kinds is the same.
TEST(PriceBook, DoublingTheLengthChangesNoShare) {
  auto dice = testing::Dice("length");
  std::map<int, double> share[2];
  std::vector<record::Cell> drawn;
  for (int doubled = 0; doubled < 2; ++doubled) {
    Pool pool(false, QualityClass::kBalanced, 1);
    PriceBook book;
    for (int i = 0; i < 4000 << doubled; ++i) {
      Pool::Item& item = pool.AddItem(dice, 24);
      if (!doubled) drawn.push_back(item.cells[0]);
      item.cells[0].log2_w_k = drawn[static_cast<size_t>(i) % drawn.size()].log2_w_k;
      book.Add(0, pool.Priced(item));
    }
    ASSERT_TRUE(book.Solve(book.bytes() * 2 / 5));
    pool.Demote(&book);
    for (auto& item : pool.items)
      share[doubled][item.cells[0].k_kind * 32 + item.cells[0].v_kind] +=
          1.0 / static_cast<double>(pool.items.size());
  }
  for (const auto& [kinds, s] : share[0]) EXPECT_NEAR(s, share[1][kinds], .02) << kinds;
}

// All tiles alike: the boundary is taken partly, so the budget is used.
TEST(PriceBook, TakesPartOfTheBoundary) {
  auto dice = testing::Dice("boundary");
  Pool pool(false, QualityClass::kBalanced, 1);
  PriceBook book;
  for (int i = 0; i < 4000; ++i) book.Add(0, pool.Priced(pool.AddItem(dice, 0)));
  for (double share : {.9, .7, .45, .35, .29}) {
    const auto budget = static_cast<int64_t>(share * 4000 * 8 * 1088);
    if (!book.Solve(budget)) break;
    pool.Demote(&book);
    EXPECT_LE(pool.Bytes(), budget);
    EXPECT_GE(static_cast<double>(pool.Bytes()), .97 * static_cast<double>(budget));
  }
}

TEST(PriceBook, PriceAndTilesDoNotWobble) {
  auto dice = testing::Dice("hysteresis");
  Pool pool(false, QualityClass::kBalanced, 1);
  PriceBook book;
  for (int i = 0; i < 2000; ++i) book.Add(0, pool.Priced(pool.AddItem(dice, 16)));
  const int64_t budget = book.bytes() * 2 / 5;
  ASSERT_TRUE(book.Solve(budget));
  pool.Demote(&book);
  const Price price = book.price();
  // Solving again, under a budget that wobbles by 1 %, moves neither price nor tiles.
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(book.Solve(budget + (i % 2 ? budget / 100 : 0)));
    EXPECT_EQ(book.price(), price);
    EXPECT_EQ(pool.Demote(&book), 0);
  }
  // Importance that wobbles by one eighth does not wear a fresh tile down.
  Pool::Item& item = pool.AddItem(dice, 0);
  TilePlan put;
  Decide(pool.Priced(item), price, true, book.options(), {&put, 1});
  item.cells[0].k_kind = put.k_kind;
  item.cells[0].v_kind = put.v_kind;
  for (int w : {-1, 1, 0, -1}) {
    item.cells[0].log2_w_k = static_cast<int8_t>(w);
    TilePlan plan;
    Decide(pool.Priced(item), price, false, book.options(), {&plan, 1});
    EXPECT_EQ(plan, put);
  }
  // When most is gone the price falls, slowly.
  for (size_t i = 0; i < 1500; ++i) book.Remove(0, pool.Priced(pool.items[i]));
  ASSERT_TRUE(book.Solve(budget));
  EXPECT_LT(book.price(), price);
  EXPECT_GE(book.price(), price - kEighths * kPriceSub);
}

// Where a budget takes the floors and nothing below: no dearer than the dearest step there is, or
// whoever compares the price with that of moving a block would move them all.
TEST(PriceBook, PriceOfTheFloorsIsThatOfTheLastStep) {
  auto dice = testing::Dice("floors");
  Pool pool(false, QualityClass::kBalanced);
  PriceBook book;
  for (int i = 0; i < 200; ++i) {
    const Pool::Item& item = pool.AddItem(dice, 8);
    book.Add(0, pool.Priced(item));
  }
  const int64_t floors = book.floor_bytes();
  ASSERT_GT(book.bytes(), 2 * floors);
  EXPECT_TRUE(book.Solve(floors + 1));
  EXPECT_EQ(book.projected(), floors);
  EXPECT_LT(Log2Price(book.price()), 10);
  EXPECT_GT(book.projected(book.price() - 1), floors) << "the last step is below the price";
}

TEST(PriceBook, TenantOverItsQuotaPaysMore) {
  auto dice = testing::Dice("tenants");
  Pool pool(false, QualityClass::kBalanced, 1);
  PriceBook book;
  for (int i = 0; i < 3000; ++i) {
    Pool::Item& item = pool.AddItem(dice, 16);
    item.tenant = 1 + static_cast<uint64_t>(i % 2);
    book.Add(item.tenant, pool.Priced(item));
  }
  const int64_t quota = book.bytes(2) * 2 / 5;
  book.SetQuota(2, quota);
  ASSERT_TRUE(book.Solve(book.bytes()));
  EXPECT_GT(book.price(2), book.price(1));
  const int64_t first = book.bytes(1);
  pool.Demote(&book);
  EXPECT_LE(book.bytes(2), quota);
  EXPECT_EQ(book.bytes(1), first) << "another's quota costs nobody bits";
  // Pressure on the tier then falls on the other first.
  ASSERT_TRUE(book.Solve(book.bytes() * 9 / 10));
  EXPECT_GE(book.price(2), book.price(1));
  book.SetQuota(2, 0);
  EXPECT_EQ(book.price(2), book.price(1));
}

TEST(PriceBook, PutsEnterAtTodaysPrice) {
  auto dice = testing::Dice("puts");
  Pool pool(true, QualityClass::kSmall, 1);
  const Pool::Item& item = pool.AddItem(dice, 0);
  TilePlan plan;
  Decide(pool.Priced(item), kFreePrice, true, {}, {&plan, 1});
  EXPECT_EQ(plan.k_kind, kind::kPlain8);
  EXPECT_EQ(plan.v_kind, kind::VBits(8));
  Decide(pool.Priced(item), kDearestPrice, true, {}, {&plan, 1});
  EXPECT_EQ(plan.k_kind, kind::Level(0));
  EXPECT_EQ(plan.v_kind, kind::VBits(0));
}

}  // namespace
}  // namespace dyna
