#include "daemon/net/device_region.h"

#include <utility>

namespace dyna {

DeviceRegion::DeviceRegion(std::unique_ptr<SharedDevice::Mapping> mapping, uint64_t size,
                           OffLoop off_loop)
    : ClientMemory(mapping->data(), size, /*on_device=*/true),
      mapping_(std::move(mapping)),
      off_loop_(std::move(off_loop)) {}

DeviceRegion::~DeviceRegion() {
  std::shared_ptr<SharedDevice::Mapping> mapping = std::move(mapping_);
  off_loop_([mapping = std::move(mapping)]() mutable { mapping.reset(); },
            [released = TakeReleased()] {
              for (const auto& tell : released) tell();
            });
}

}  // namespace dyna
