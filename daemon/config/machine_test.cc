#include "daemon/config/machine.h"

#include <gtest/gtest.h>

namespace dyna::config {
namespace {

Machine Small() {
  Machine m;
  m.memory_bytes = 16ull << 30;
  m.cores = 4;
  m.uid = 0;
  m.home = "/home/x";
  m.disk_free = [](const std::string&) { return 50'000'000'000ull; };
  return m;
}

TEST(Resolve, FitsTheMachine) {
  const Options o = Resolve({}, Small());
  EXPECT_EQ(o.arena.bytes, 4ull << 30);
  EXPECT_EQ(o.budget.bytes, 4ull << 30);
  EXPECT_EQ(o.spill.bytes, 5'000'000'000u) << "10 % of what is free";
  EXPECT_EQ(o.server.codec_threads, 4u);
  EXPECT_EQ(o.server.state_dir, "/var/lib/dynacompress");
  EXPECT_EQ(o.spill.dir, "/var/lib/dynacompress/spill");
  EXPECT_EQ(o.server.socket, "/run/dynacompress/dynacompress.sock");
  EXPECT_EQ(o.server.uids, std::vector<uint32_t>{0});
}

TEST(Resolve, CapsTheDiskAndKeepsWhatIsSet) {
  Machine m = Small();
  m.disk_free = [](const std::string&) { return 1ull << 50; };
  Options o;
  o.arena.bytes = 1000;
  o.bank.dir = "/data/bank";
  o.budget.bytes = 1ull << 40;
  o = Resolve(o, m);
  EXPECT_EQ(o.spill.bytes, 20'000'000'000u);
  EXPECT_EQ(o.arena.bytes, 1024u) << "whole units of 256";
  EXPECT_EQ(o.budget.bytes, 1024u) << "never above the arena";
  EXPECT_EQ(o.bank.dir, "/data/bank");
}

TEST(Resolve, FollowsTheUserAndSystemd) {
  Machine m = Small();
  m.uid = 1000;
  Options o = Resolve({}, m);
  EXPECT_EQ(o.server.state_dir, "/home/x/.local/state/dynacompress");
  EXPECT_EQ(o.server.socket, "/tmp/dynacompress-1000/dynacompress.sock");
  EXPECT_EQ(o.server.uids, (std::vector<uint32_t>{0, 1000}));
  m.xdg_state_home = "/s";
  m.xdg_runtime_dir = "/r";
  o = Resolve({}, m);
  EXPECT_EQ(o.server.state_dir, "/s/dynacompress");
  EXPECT_EQ(o.server.socket, "/r/dynacompress.sock");
  m.state_directory = "/var/lib/d";
  m.runtime_directory = "/run/d";
  o = Resolve({}, m);
  EXPECT_EQ(o.server.state_dir, "/var/lib/d");
  EXPECT_EQ(o.server.socket, "/run/d/dynacompress.sock");
}

TEST(ThisMachine, HasWhatItTakes) {
  const Machine m = ThisMachine();
  EXPECT_GT(m.memory_bytes, 64ull << 20);
  EXPECT_GE(m.cores, 1u);
  EXPECT_GT(m.disk_free("/tmp/not/there/yet"), 0u) << "of the nearest folder that exists";
}

}  // namespace
}  // namespace dyna::config
