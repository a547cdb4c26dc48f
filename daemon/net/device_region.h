// A client's memory on the GPU, registered. The driver may take its time to let go of it: that is
// done off the loop, and only then the memory is the client's again (OnReleased).
#pragma once

#include <functional>
#include <memory>

#include "client/transport/region.h"
#include "kernels/shared_device.h"

namespace dyna {

class DeviceRegion final : public ClientMemory {
 public:
  // SessionHost::off_loop.
  using OffLoop = std::function<void(std::function<void()> work, std::function<void()> done)>;
  DeviceRegion(std::unique_ptr<SharedDevice::Mapping> mapping, uint64_t size, OffLoop off_loop);
  ~DeviceRegion() override;

 private:
  std::unique_ptr<SharedDevice::Mapping> mapping_;
  const OffLoop off_loop_;
};

}  // namespace dyna
