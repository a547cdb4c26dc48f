// Frames over a stream socket, AF_UNIX (with descriptors) or TCP: header, control, payload.
//
// Payload is read by the kernel straight into the memory that the sink named, and written from the
// memory that the sender named: no copy of ours on either side.
#pragma once

#include <memory>

#include "client/base/asio.h"
#include "client/base/unique_fd.h"
#include "client/transport/channel.h"

namespace dyna {

// Takes a connected socket; reads as soon as the loop runs. Dropping the last handle closes it.
// REQUIRES: called on the thread that runs `loop`, and `sink` as channel.h demands.
Result<std::shared_ptr<Channel>> MakeSocketChannel(asio::io_context& loop, UniqueFd socket,
                                                   const ChannelOptions& options, FrameSink* sink);

}  // namespace dyna
