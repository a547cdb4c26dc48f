// Boost.Asio, included nowhere else: 1.74 needs <utility> first under C++20.
#pragma once

#include <utility>

#include <boost/asio.hpp>  // NOLINT(build/include_order)

namespace dyna {
namespace asio = boost::asio;
}  // namespace dyna
