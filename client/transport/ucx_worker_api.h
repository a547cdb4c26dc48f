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

class UcxWorkerApi {
 public:
  virtual ~UcxWorkerApi() = default;
  virtual std::span<const std::byte> address() const = 0;
  virtual std::string version() const = 0;
  virtual bool handles_cuda_memory() const = 0;
  virtual Result<std::shared_ptr<Channel>> Connect(std::span<const std::byte> address,
                                                   const SessionToken& token,
                                                   const ChannelOptions& options,
                                                   FrameSink* sink) = 0;
  virtual UcxStats stats() const = 0;
  virtual uint64_t operations() const = 0;  // requests that UCX has not ended

  // For the pump. Readable when Progress() would find work, once Arm() said true. Never read it.
  virtual int event_fd() const = 0;
  // Callbacks run in here. Zero: nothing was there to do.
  virtual unsigned Progress() = 0;
  virtual bool Arm() = 0;

  // Closes every channel and progresses until UCX holds no memory of theirs; at most `limit`.
  virtual void Shutdown(Duration limit) = 0;
};

struct UcxHost {
  Executor* executor = nullptr;  // outlives the worker
  std::function<void()> kick;    // something was submitted: pump soon
};

// The one symbol that is looked up. The number changes with every interface above.
inline constexpr int kUcxAbi = 2;
inline constexpr char kUcxCreateSymbol[] = "DynaUcxCreate";
using UcxCreateFunction = void (*)(int abi, const UcxOptions& options, const UcxHost& host,
                                   Result<std::shared_ptr<UcxWorkerApi>>* worker);

}  // namespace dyna
