// A client's regions: its shared memory of the host, and its memory on the GPU.
#include <algorithm>
#include <utility>

#include "client/base/log.h"
#include "daemon/net/device_region.h"
#include "daemon/net/session.h"

namespace dyna {

Result<std::shared_ptr<ClientMemory>> Session::FindRegion(uint32_t region) const {
  auto it = regions_.find(region);
  if (it == regions_.end())
    return Invalid("region " + std::to_string(region) +
                   " is not registered with this daemon instance");
  if (it->second->poisoned())
    return Invalid("region " + std::to_string(region) + " is poisoned: its pages went away");
  return it->second;
}

Status Session::RoomFor(const wire::RegisterRegion& m) const {
  if (regions_.size() + opening_regions_ >= host_.limits.regions)
    return TooLarge("regions: " + std::to_string(host_.limits.regions) +
                    " of this client (limits.regions)");
  const uint64_t most = host_.limits.region_bytes;
  const uint64_t left = most - std::min(most, region_bytes_ + opening_bytes_);
  if (m.size > left)
    return TooLarge("region: size " + std::to_string(m.size) + ", at most " + std::to_string(left) +
                    " (limits.region_bytes)");
  return {};
}

uint32_t Session::AddRegion(std::shared_ptr<ClientMemory> region) {
  region_bytes_ += region->size();
  host_.stats.region_bytes += region->size();
  ++host_.stats.regions;
  host_.stats.device_regions += region->on_device() ? 1 : 0;
  regions_.emplace(next_region_, std::move(region));
  return next_region_++;
}

void Session::Uncount(const ClientMemory& region) {
  region_bytes_ -= region.size();
  host_.stats.region_bytes -= region.size();
  --host_.stats.regions;
  host_.stats.device_regions -= region.on_device() ? 1 : 0;
}

Admission Session::Handle(const RequestRef& r, const InFrame& f, const wire::RegisterRegion& m) {
  wire::RegisterRegionReply reply;
  const bool device = m.kind == wire::RegionKind::kDevice;
  if (device && host_.shared == nullptr)
    reply.status = Unsupported("this daemon uses no GPU: K and V reach it through the host");
  else if (device && r->port != &socket_)
    reply.status = Invalid("a region is registered over the control socket");
  else if (f.fds.size() != (device ? 0 : 1))
    reply.status = Invalid(device ? "a region on the GPU comes without a descriptor"
                                  : "a region comes with one memfd, over AF_UNIX");
  else
    reply.status = RoomFor(m);
  if (!reply.status.ok())
    Reply(r, reply, reply.status.code());
  else if (device)
    RegisterDevice(r, m);
  else
    RegisterHost(r, m, std::move(f.fds[0]));
  return Admission::Handled();
}

void Session::RegisterHost(const RequestRef& r, const wire::RegisterRegion& m, UniqueFd memfd) {
  wire::RegisterRegionReply reply;
  auto mapped = MappedRegion::Map(std::move(memfd), m.size, host_.limits.region_bytes);
  if (!mapped.ok()) {
    reply.status = mapped.status();
    Reply(r, reply, reply.status.code());
    return;
  }
  reply.region = AddRegion(*mapped);
  host_.codec.Run(
      m.size, [region = *mapped] { region->Prefault(); },
      [this, r, reply, keep = *mapped] { Reply(r, reply, StatusCode::kOk); });
}

void Session::RegisterDevice(const RequestRef& r, const wire::RegisterRegion& m) {
  opening_bytes_ += m.size;
  ++opening_regions_;
  struct Opening {
    wire::RegisterRegion m;
    Result<std::unique_ptr<SharedDevice::Mapping>> mapping = Internal("not opened");
  };
  auto opening = std::make_shared<Opening>(Opening{m});
  host_.off_loop(
      [opening, shared = host_.shared] {
        const wire::RegisterRegion& what = opening->m;
        opening->mapping = shared->Open({what.device, what.handle, what.offset, what.size});
      },
      [this, r, opening] {
        wire::RegisterRegionReply reply;
        --opening_regions_;
        opening_bytes_ -= opening->m.size;
        std::shared_ptr<ClientMemory> region;
        if (opening->mapping.ok())
          region = std::make_shared<DeviceRegion>(std::move(*opening->mapping), opening->m.size,
                                                  host_.off_loop);
        else
          reply.status = opening->mapping.status();
        if (region && !closed_) {  // a client that has gone needs none
          reply.region = AddRegion(std::move(region));
          LogDebug("client {}: region {} of {} bytes on the GPU", name_, reply.region,
                   opening->m.size);
        }
        Reply(r, reply, reply.status.code());
      });
}

Admission Session::Handle(const RequestRef& r, const InFrame&, const wire::DeregisterRegion& m) {
  auto it = regions_.find(m.region);
  if (it == regions_.end())
    return Refuse(r, Invalid("region " + std::to_string(m.region) + " is not registered"));
  if (it->second->poisoned()) ++host_.stats.poisoned_regions;
  Uncount(*it->second);
  // Answered when the last job has let go of it: only then is the memory the client's again.
  it->second->OnReleased([this, r] { host_.executor.Post([this, r] { ReplyStatus(r, {}); }); });
  regions_.erase(it);
  return Admission::Handled();
}

}  // namespace dyna
