// The smallest peer that speaks the protocol: keeps what is put as it came, in a thread of its own.
// For tests of the library alone; the real daemon is tested with it in tests/e2e.
#pragma once

#include <atomic>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "client/base/asio.h"
#include "client/transport/channel.h"
#include "client/transport/region.h"
#include "client/transport/socket_listener.h"
#include "kernels/backend.h"
#include "schemas/wire.h"

namespace dyna {

class TestDaemon {
 public:
  explicit TestDaemon(const std::string& path);
  ~TestDaemon();

  // Closes every connection and forgets sessions; blocks are kept. As a restarted daemon would.
  void DropConnections();
  void RevokeLeases();
  // Requests of this type are taken and never answered.
  void Mute(wire::Type type) { muted_ = static_cast<int>(type); }
  void Unmute() { muted_ = -1; }
  // Nothing is read and nothing answered in between.
  void Stall();
  void Resume();

  // Seen so far.
  std::atomic<int> puts{0}, fetches{0}, registers{0}, deregisters{0}, opens{0}, releases{0},
      basis_requests{0}, connections{0};
  std::atomic<uint64_t> payload_bytes{0}, max_frame_segments{0};
  std::atomic<uint32_t> put_ttl_ms{0};  // of the last one
  uint32_t request_credits = 8;
  uint64_t byte_credits = 32u << 20;
  std::atomic<int> in_flight{0}, max_in_flight{0};

 private:
  struct Session;
  void OnLoop(std::function<void()> task);  // waits for it

  asio::io_context loop_{1};
  asio::executor_work_guard<asio::io_context::executor_type> work_{loop_.get_executor()};
  std::unique_ptr<SocketListener> listener_;
  std::set<std::shared_ptr<Session>> sessions_;
  std::map<std::pair<BlockHash, uint16_t>, std::vector<std::byte>> segments_;  // dense
  std::map<BlockHash, std::vector<std::byte>> opaque_;
  std::map<Fingerprint, ContextSpec> contexts_;
  std::unique_ptr<Backend> backend_;
  uint64_t instance_ = 1, next_lease_ = 1;
  std::atomic<int> muted_{-1};
  std::unique_ptr<std::promise<void>> stalled_;
  std::thread thread_;
};

}  // namespace dyna
