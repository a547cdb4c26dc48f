// What the handles of dynacompress.h are, and its structs turned into the library's.
#pragma once

#include <algorithm>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "client/base/unique_fd.h"
#include "client/client.h"
#include "client/dynacompress.h"

struct dyna_client {
  std::unique_ptr<dyna::Client> client;
};
struct dyna_region {
  std::shared_ptr<dyna::Region> region;
};
struct dyna_gpu_region {
  std::shared_ptr<dyna::GpuRegion> region;
};
struct dyna_context {
  std::shared_ptr<dyna::Context> context;
};
struct dyna_lease {
  dyna::Lease lease;
};
struct dyna_result {
  dyna::Status status;
  std::string message;
  std::vector<dyna_segment> segments;
  std::vector<dyna_hit> hits;
  std::vector<uint64_t> masks;
  std::vector<std::byte> bytes;
  uint64_t count = 0;
  uint32_t run = 0;
  dyna::Lease lease;
};

namespace dyna::c {

// The queue behind a dyna_queue: results, and a descriptor that counts them. Any thread.
class CompletionQueue {
 public:
  static Result<std::shared_ptr<CompletionQueue>> Create(size_t capacity);
  // A place for one answer, taken before the call starts, so that Push always has room.
  bool Reserve();
  void Cancel();  // of a Reserve() whose call did not start
  void Push(uint64_t tag, std::unique_ptr<dyna_result> result);
  size_t Drain(dyna_completion* out, size_t max);
  int fd() const { return fd_.get(); }

 private:
  CompletionQueue(size_t capacity, UniqueFd fd) : fd_(std::move(fd)), capacity_(capacity) {}
  struct Entry {
    uint64_t tag = 0;
    std::unique_ptr<dyna_result> result;
  };
  const UniqueFd fd_;
  const size_t capacity_;
  std::mutex mutex_;  // what follows, and the count of fd_, which is ready_.size()
  std::deque<Entry> ready_;
  size_t reserved_ = 0;
};

// A request as this library knows it, of a caller that may know only its first version (which ended
// at `first` bytes): fields that it does not have are 0.
template <typename T>
Result<T> Whole(const T* given, size_t first) {
  T whole{};
  if (given->size < first) return Invalid("request.size: use DYNA_INIT");
  std::memcpy(static_cast<void*>(&whole), given, std::min(given->size, sizeof whole));
  return whole;
}

Shard ToShard(const dyna_shard& s);
Result<ClientOptions> ToOptions(const dyna_options* o);
Result<ContextSpec> ToSpec(const dyna_context_spec& s);
Result<KvMemory> ToMemory(const dyna_kv& m, size_t blocks, size_t layers, int on_device,
                          void* stream);
Result<std::vector<BlockHash>> ToHashes(const dyna_hash* hashes, size_t count);
BlockHash ToHash(const dyna_hash* hash);  // null: zero

std::unique_ptr<dyna_result> ToResult(const PutResult& r);
std::unique_ptr<dyna_result> ToResult(FetchResult r);
std::unique_ptr<dyna_result> ToResult(Result<Lease> r);
std::unique_ptr<dyna_result> ToResult(Result<std::vector<wire::LookupHit>> r);
std::unique_ptr<dyna_result> ToResult(Result<uint64_t> r);
std::unique_ptr<dyna_result> ToResult(Result<OpaqueObject> r);
std::unique_ptr<dyna_result> ToResult(Result<std::string> r);
std::unique_ptr<dyna_result> ToResult(const Status& s);

}  // namespace dyna::c

struct dyna_queue {
  std::shared_ptr<dyna::c::CompletionQueue> queue;
};
