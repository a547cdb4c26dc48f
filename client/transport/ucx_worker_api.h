// What crosses the boundary of the shared object dyna_ucx: plain interfaces, no UCX and no Asio
// (its state must not exist twice in a process).
//
// One thread, the loop's.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>

#include "client/base/executor.h"
#include "client/transport/channel.h"
#include "client/transport/ucx_transport.h"
#include "schemas/status.h"

namespace dyna {

// One worker, for one peer. It ends by itself after its channel was closed, or by End().
class UcxWorkerApi {
 public:
  virtual ~UcxWorkerApi() = default;
  virtual std::span<const std::byte> address() const = 0;
  virtual Result<std::shared_ptr<Channel>> Connect(std::span<const std::byte> address,
                                                   const SessionToken& token,
                                                   const ChannelOptions& options,
                                                   FrameSink* sink) = 0;
  virtual uint64_t operations() const = 0;  // requests that UCX has not ended

  // For the pump. Readable when Progress() would find work, once Arm() said true. Never read it.
  virtual int event_fd() const = 0;
  // Callbacks run in here. Zero: nothing was there to do.
  virtual unsigned Progress() = 0;
  virtual bool Arm() = 0;

  // The channel, if there is one, and then the worker: once nothing is under way, or after
  // close_timeout.
  virtual void Close() = 0;
  // For a loop that may not run any more: a round of what it would do; true when nothing is left.
  virtual bool Drain() = 0;
  // Now: what is under way ends here, with its callbacks. Not inside Progress().
  virtual void End() = 0;
};

struct UcxHost {
  Executor* executor = nullptr;  // outlives the worker
  std::shared_ptr<UcxStats> stats;
  std::function<void()> kick;    // something was submitted: pump soon
  std::function<void()> ending;  // the descriptor goes, and then nothing is left of the worker
};

class UcxContextApi {
 public:
  virtual ~UcxContextApi() = default;
  virtual std::string version() const = 0;
  virtual bool handles_cuda_memory() const = 0;
  virtual Result<std::shared_ptr<UcxWorkerApi>> OpenWorker(const UcxHost& host) = 0;
};

// The one symbol that is looked up. The number changes with every interface above.
inline constexpr int kUcxAbi = 3;
inline constexpr char kUcxCreateSymbol[] = "DynaUcxCreate";
using UcxCreateFunction = void (*)(int abi, const UcxOptions& options,
                                   Result<std::shared_ptr<UcxContextApi>>* context);

}  // namespace dyna
