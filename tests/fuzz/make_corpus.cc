// Writes the seeds of every fuzz target with the project's own writers:
//   build/fuzz/bin/make_corpus tests/fuzz/corpus schemas/golden
// Wire and record seeds are the released golden bytes. Inputs named regression-* are left alone.
#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>

#include "client/transport/frame.h"
#include "daemon/policy/basis/profile.h"
#include "daemon/policy/history.h"
#include "kernels/backend.h"
#include "tests/fuzz/fuzz.h"

namespace dyna {
namespace {

namespace fs = std::filesystem;
fs::path root;

void Write(const std::string& door, const std::string& name, std::span<const std::byte> bytes) {
  DYNA_FUZZ_CHECK(bytes.size() < 8192);  // a seed is small
  fs::create_directories(root / door);
  std::ofstream file(root / door / name, std::ios::binary);
  file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<long>(bytes.size()));
  DYNA_FUZZ_CHECK(file.good());
}

// Lines "NAME HEX".
void Wire(const fs::path& golden) {
  std::ifstream lines(golden / "wire_v1.txt");
  std::string line;
  std::map<std::string, int> seen;  // a type that has changed has several lines
  while (std::getline(lines, line)) {
    std::istringstream words(line);
    std::string name, hex;
    if (line.starts_with("#") || !(words >> name >> hex)) continue;
    std::vector<std::byte> bytes;
    for (size_t i = 0; i + 1 < hex.size(); i += 2)
      bytes.push_back(static_cast<std::byte>(std::stoi(hex.substr(i, 2), nullptr, 16)));
    if (const int n = ++seen[name]; n > 1) name += "-" + std::to_string(n);
    if (bytes.size() < 4096) Write("wire", name, bytes);
  }
}

void Records(const fs::path& golden) {
  for (const auto& entry : fs::directory_iterator(golden)) {
    const std::string name = entry.path().stem();
    if (!name.starts_with("record_")) continue;
    fs::create_directories(root / "record");
    fs::copy_file(entry.path(), root / "record" / name.substr(7),
                  fs::copy_options::overwrite_existing);
  }
}

void Frames() {
  std::vector<std::byte> stream{std::byte{41}};  // odd: headers are sealed; pieces of 741 bytes
  for (uint64_t id = 1; id <= 3; ++id) {
    const std::vector<std::byte> payload(id * 100, std::byte{7});
    FrameHeader header;
    header.type = static_cast<uint8_t>(id);
    header.request_id = id;
    header.control_len = 40;
    header.payload_len = payload.size();
    if (id == 2) {
      header.flags = kFlagChecksum;
      const std::span<const std::byte> parts[] = {payload};
      header.payload_crc32c = PayloadCrc32c(parts);
    }
    const auto bytes = EncodeFrameHeader(header);
    stream.insert(stream.end(), bytes.begin(), bytes.end());
    stream.insert(stream.end(), 40, std::byte{1});
    stream.insert(stream.end(), payload.begin(), payload.end());
  }
  Write("frame", "sealed", stream);
  stream[0] = std::byte{0};  // as it is, a byte at a time
  Write("frame", "bytes", stream);
}

void Segments() {
  const auto basis = fuzz::MakeBasis();
  const RopeTable rope(fuzz::Spec().ropes[0]);
  auto backend = MakeCpuBackend("scalar");
  const size_t tile = size_t{kBlockTokens} * fuzz::kDim;
  std::vector<uint16_t> kv(2 * fuzz::kHeads * tile);
  for (size_t i = 0; i < kv.size(); ++i)
    kv[i] = static_cast<uint16_t>(0x3800 | (i * 37 % 1024) | (i % 3 == 0 ? 0x8000 : 0));
  const auto* at = reinterpret_cast<const std::byte*>(kv.data());
  struct Seed {
    const char* name;
    TilePlan plan;
    uint64_t pins;
  };
  const Seed seeds[] = {{"plain4_v2", {kind::kPlain4, kind::VBits(2), ~uint64_t{0}}, 0},
                        {"plain8_v1_pins", {kind::kPlain8, kind::VBits(1), ~uint64_t{0}}, 0xf},
                        {"level_v4", {kind::Level(3), kind::VBits(4), ~uint64_t{0}}, 0xf},
                        {"mean_dropped", {kind::Level(0), kind::VBits(0), 0xffff00ff}, 0},
                        {"fp8", {kind::kFp8, kind::kFp8, ~uint64_t{0}}, 0}};
  for (const Seed& seed : seeds) {
    const std::vector<TilePlan> plan(fuzz::kHeads, seed.plan);
    const bool level = kind::IsLevel(seed.plan.k_kind);
    EncodeJob job;
    job.id.fingerprint = fuzz::kModel;
    job.id.kv_heads = fuzz::kHeads;
    job.id.head_dim = fuzz::kDim;
    job.id.dtype = DType::kF16;
    job.id.basis = level ? basis->name() : 0;
    job.basis = level ? basis.get() : nullptr;
    job.rope = &rope;
    job.pins = seed.pins;
    const int64_t row = fuzz::kDim * 2, head = 2 * static_cast<int64_t>(tile) * 2;
    job.source = {at, at + tile * 2, row, head, row, head, DType::kF16};
    job.plan = plan;
    std::vector<std::byte> out(EncodedBytes(job.id, plan, seed.pins, job.basis));
    job.out = out;
    (*backend)->Encode({&job, 1});
    if (!job.status.ok()) std::fprintf(stderr, "%s\n", job.status.ToString().c_str());
    DYNA_FUZZ_CHECK(job.status.ok());
    out.resize(job.bytes);
    SealSegment(out);
    Write("segment", seed.name, out);
  }
}

void Policy() {
  Write("basis", "falling", fuzz::MakeBasis()->bytes());
  Profile profile;
  profile.fingerprint = fuzz::kModel;
  profile.bases = {fuzz::MakeBasis(0), nullptr};
  profile.cells.assign(
      2, std::vector<CellSensitivity>(fuzz::kHeads, CellSensitivity{1e-3f, 2e-3f, .01f, .1f}));
  Write("profile", "omega", SerializeProfile(profile));
  profile.cells.clear();
  Write("profile", "basis", SerializeProfile(profile));

  BlockHistory history({0, 2, 0, fuzz::kHeads}, HistoryGrain::kGroup, 1);
  Write("history", "new", history.Serialize());
  const std::vector<float> x(size_t{fuzz::kHeads} * kBlockTokens, 2.f);
  DYNA_FUZZ_CHECK(history.Fold({1, 0, fuzz::kHeads, x, 512}, {}).ok());
  Write("history", "folded", history.Serialize());
}

void Text(const std::string& name, std::string_view text) {
  Write("config", name, std::as_bytes(std::span(text)));
}

void Config() {
  Text("sizes", "[arena]\nbytes = \"4 GiB\"\n[server]\ndrain_ms = 500\n");
  Text("tenants", "[[tenants]]\nname = \"a\"\nuids = [1000]\nquota_bytes = \"1 GiB\"\n");
  Text("unknown", "[arena]\nbyts = 7\n[policy]\nname = 'nothing'\n");
}

void Regions() {
  std::vector<uint8_t> bytes(24);
  const uint32_t offsets[2] = {0, 32};
  const int16_t strides[4] = {64, 4096, 64, 4096};
  std::memcpy(&bytes[0], offsets, sizeof offsets);
  std::memcpy(&bytes[8], strides, sizeof strides);
  bytes[16] = 6;  // a level
  bytes[17] = 2;
  bytes.insert(bytes.end(), {0, 0, 16, 0, 64, 0x7b, 16, 0, 32, 1, 33, 0x3c});
  Write("region", "level", std::as_bytes(std::span(bytes)));
  bytes[16] = 1;
  Write("region", "plain8", std::as_bytes(std::span(bytes)));
}

}  // namespace
}  // namespace dyna

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: make_corpus CORPUS GOLDEN\n");
    return 2;
  }
  dyna::root = argv[1];
  dyna::Wire(argv[2]);
  dyna::Records(argv[2]);
  dyna::Frames();
  dyna::Segments();
  dyna::Policy();
  dyna::Config();
  dyna::Regions();
  return 0;
}
