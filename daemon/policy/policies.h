// The policies behind the table of policy.cc, one file each. Only policy.cc and they include it.
#pragma once

#include <memory>

#include "daemon/policy/policy.h"

namespace dyna {

Result<std::unique_ptr<Policy>> MakeDynacompressPolicy(const PolicyOptions& options);
Result<std::unique_ptr<Policy>> MakeDynamicKvPolicy(const PolicyOptions& options);
Result<std::unique_ptr<Policy>> MakeExpectedAttentionPolicy(const PolicyOptions& options);
Result<std::unique_ptr<Policy>> MakeFastKvPolicy(const PolicyOptions& options);
Result<std::unique_ptr<Policy>> MakeFullPolicy(const PolicyOptions& options);
Result<std::unique_ptr<Policy>> MakeH2oPolicy(const PolicyOptions& options);
Result<std::unique_ptr<Policy>> MakeKeyDiffPolicy(const PolicyOptions& options);
Result<std::unique_ptr<Policy>> MakeKvDistillPolicy(const PolicyOptions& options);
Result<std::unique_ptr<Policy>> MakePrintedPolicy(const PolicyOptions& options);
Result<std::unique_ptr<Policy>> MakePrintedCorrectedPolicy(const PolicyOptions& options);
Result<std::unique_ptr<Policy>> MakeRandomPolicy(const PolicyOptions& options);
Result<std::unique_ptr<Policy>> MakeSnapKvPolicy(const PolicyOptions& options);
Result<std::unique_ptr<Policy>> MakeStreamingLlmPolicy(const PolicyOptions& options);
Result<std::unique_ptr<Policy>> MakeUniformPolicy(const PolicyOptions& options);

}  // namespace dyna
