// A region whose client writes into it and punches holes while the daemon's side encodes from it
// and decodes into it. Input: the layout (offsets, strides, kinds), then what the client does.
// Whatever happens, an encoded segment is a valid one, and nothing outside the region is touched.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "client/transport/region.h"
#include "kernels/backend.h"
#include "tests/fuzz/fuzz.h"

namespace dyna {
namespace {

constexpr uint64_t kBytes = 64 << 10, kRow = fuzz::kDim * 2;

struct World {
  std::shared_ptr<Region> client = Region::Allocate(kBytes).value();
  UniqueFd fd = std::move(client->DuplicateFd().value());
  std::shared_ptr<MappedRegion> daemon =
      MappedRegion::Map(std::move(client->DuplicateFd().value()), client->size(), 1 << 20).value();
  std::unique_ptr<Backend> backend = std::move(MakeCpuBackend("auto").value());
  std::shared_ptr<const Basis> basis = fuzz::MakeBasis();
  RopeTable rope{fuzz::Spec().ropes[0]};
};

// The client: repeats its script until told to stop.
void Scribble(const World& world, std::span<const uint8_t> script, const std::atomic<bool>& stop) {
  const std::span<std::byte> memory = world.client->bytes();
  while (!stop.load(std::memory_order_relaxed))
    for (size_t i = 0; i + 2 < script.size(); i += 3) {
      const size_t at = (size_t{script[i]} << 8 | script[i + 1]) % memory.size();
      if (script[i + 2] % 16 == 0)
        (void)fallocate(world.fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                        static_cast<off_t>(at / 4096 * 4096), 4096);
      else
        *reinterpret_cast<volatile uint8_t*>(&memory[at]) = script[i + 2];
    }
}

struct Layout {  // 24 bytes of the input
  uint32_t k_offset, v_offset;
  int16_t k_token, k_head, v_token, v_head;
  uint8_t k_kind, v_bits, dtype, quality;
  uint32_t pins;
};

void Encode(World& world, const Layout& in) {
  const Axis k[] = {{kBlockTokens, in.k_token}, {fuzz::kHeads, in.k_head}};
  const Axis v[] = {{kBlockTokens, in.v_token}, {fuzz::kHeads, in.v_head}};
  const DType dtype = in.dtype % 2 == 0 ? DType::kF16 : DType::kBf16;
  const auto k_at = world.daemon->Strided(in.k_offset, kRow, k);
  const auto v_at = world.daemon->Strided(in.v_offset, kRow, v);
  if (!k_at.ok() || !v_at.ok()) return;

  constexpr uint8_t kVBits[] = {0, 1, 2, 4, 8};
  constexpr uint8_t kKinds[] = {kind::kRaw, kind::kPlain8, kind::kPlain4};
  const int levels = world.basis->info().levels, choice = in.k_kind % (3 + levels);
  const TilePlan tile{choice < 3 ? kKinds[choice] : kind::Level(choice - 3),
                      kind::VBits(kVBits[in.v_bits % 5]), ~uint64_t{0}};
  const std::vector<TilePlan> plan(fuzz::kHeads, tile);
  const Basis* basis = choice < 3 ? nullptr : world.basis.get();
  EncodeJob job;
  job.id.fingerprint = fuzz::kModel;
  job.id.kv_heads = fuzz::kHeads;
  job.id.head_dim = fuzz::kDim;
  job.id.dtype = dtype;
  job.id.basis = basis != nullptr ? basis->name() : 0;
  job.source = {*k_at, *v_at, in.k_token, in.k_head, in.v_token, in.v_head, dtype};
  job.basis = basis;
  job.rope = &world.rope;
  job.pins = in.pins & 0xf;
  job.plan = plan;
  std::vector<std::byte> out(EncodedBytes(job.id, plan, job.pins, basis));
  DYNA_FUZZ_CHECK(!out.empty());
  job.out = out;
  world.backend->Encode({&job, 1});
  if (!job.status.ok()) return;
  const std::span<const std::byte> segment = std::span(out).first(job.bytes);
  DYNA_FUZZ_CHECK(ParseSegment(segment, basis).ok());

  DecodeJob back;  // into the same memory, while the client still writes there
  back.segment = segment;
  back.basis = basis;
  back.rope = &world.rope;
  back.head_end = fuzz::kHeads;
  back.target = {*k_at, *v_at, in.k_token, in.k_head, in.v_token, in.v_head, dtype};
  world.backend->Decode({&back, 1});
  DYNA_FUZZ_CHECK(back.status.ok());
}

}  // namespace
}  // namespace dyna

// Before libFuzzer looks: it leaves a handler that is already there.
extern "C" int LLVMFuzzerInitialize(int*, char***) {
  DYNA_FUZZ_CHECK(dyna::InstallSigbusHandler().ok());
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static dyna::World world;
  dyna::Layout layout;
  if (size < sizeof layout) return 0;
  std::memcpy(&layout, data, sizeof layout);
  const std::span<const uint8_t> script(data + sizeof layout, size - sizeof layout);
  std::atomic<bool> stop{false};
  std::thread client([&] { dyna::Scribble(world, script, stop); });
  for (int round = 0; round < 4; ++round) dyna::Encode(world, layout);
  stop = true;
  client.join();
  return 0;
}
