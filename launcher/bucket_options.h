// The fields of parallel that say how gradients and the optimiser's state are cut.
#pragma once

#include "configs/schema/config.pb.h"
#include "layers/registry.h"
#include "parallel/bucket_plan.h"

namespace eyrie {

// Adds what is wrong with the fields that BucketOptionsOf reads.
void ValidateBuckets(const config::ParallelConfig& parallel, ConfigErrors& errors);

// `parallel` is valid and its data is known.
BucketOptions BucketOptionsOf(const config::ParallelConfig& parallel);

}  // namespace eyrie
