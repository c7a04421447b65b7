// Where every parameter lies in a rank's flat buffers, how these are cut into buckets for the
// reduction of gradients, and, with ZeRO, which part of each bucket a replica owns: Rajbhandari et
// al., "ZeRO", arXiv:1910.02054, stage 1. Follows from the parameter table and the layout alone,
// so that checkpoints can be planned for ranks that are not there.
//
// Parameters lie in table order. Where the values of those of full precision have a type of their
// own, these parameters come first, in table order too, in buckets of their own: a bucket's values
// have one type.
#pragma once

#include <vector>

#include "core/param_table.h"
#include "core/round.h"
#include "parallel/mesh.h"

namespace eyrie {

struct BucketOptions {
  // The optimiser's state is shared out among the replicas instead of repeated on each.
  bool zero = false;
  // About as many a bucket; rounded down to a multiple of what splits evenly over its owners.
  int64_t bucket_elements = 25 * 1024 * 1024 / 4;
};

class BucketPlan {
 public:
  // Parameters and owners' shares of buckets start at multiples of so many elements: a cache line
  // of float32.
  static constexpr int64_t kAlign = 16;

  // Elements [begin, end).
  struct Range {
    int64_t begin = 0, end = 0;
    int64_t size() const { return end - begin; }
  };
  // Successive elements that one owner owns.
  struct Stretch {
    int64_t flat = 0;   // where they start in the flat buffers
    int64_t owned = 0;  // where they start in the owner's buffers
    int64_t size = 0;
  };
  // What an owner's share of a bucket has in common with one parameter.
  struct Part {
    operator Stretch() const { return {flat, owned, range.size()}; }
    ParamId param = 0;
    int bucket = 0;
    Range range;        // in the flattened local slice of the parameter
    int64_t flat = 0;   // where it starts in the flat buffers
    int64_t owned = 0;  // where it starts in the owner's buffers
  };

  // `mixed`: values of full precision differ in type from the others (Precision::has_masters).
  BucketPlan(const ParamTable& table, MeshShape mesh, const BucketOptions& options,
             bool mixed = false);

  // The replicas (data x sequence) that own a part each; 1 without ZeRO, when every replica owns
  // all, and its own buffers are laid out like the flat ones.
  int owners() const { return owners_; }
  bool sharded() const { return owners_ > 1; }
  // Elements of a flat buffer and of an owner's buffer, padding included.
  int64_t elements() const { return elements_; }
  int64_t owned_elements() const { return elements_ / owners_; }
  // Of a flat buffer, the elements at its start whose values have a type of their own.
  int64_t full_elements() const { return full_elements_; }
  // The parameters as they lie in the flat buffers, and where each starts there.
  const std::vector<ParamId>& order() const { return order_; }
  int64_t offset(ParamId param) const { return ranges_[static_cast<size_t>(param)].begin; }

  int buckets() const { return full_buckets() + BucketsOf(elements_ - full_elements_); }
  // A bucket's place in the flat buffers; bucket 0 comes first there.
  Range bucket(int index) const;
  // The owner's part of it, also in the flat buffers, and where that lies in the owner's own.
  Range share(int bucket, int owner) const;
  int64_t owned_offset(int bucket) const { return this->bucket(bucket).begin / owners_; }
  // This bucket and all after it hold nothing but parameters from `first` on. Buckets of full
  // precision count as the last to be complete.
  int FirstBucketFrom(ParamId first) const;
  // All that `owner` owns, bucket by bucket; every element of every parameter has one owner.
  std::vector<Part> Parts(int owner) const;

 private:
  int BucketsOf(int64_t elements) const { return static_cast<int>(CeilDiv(elements, bucket_)); }
  int full_buckets() const { return BucketsOf(full_elements_); }

  int owners_ = 1;
  int64_t elements_ = 0, full_elements_ = 0;
  int64_t bucket_ = 0;  // elements
  std::vector<ParamId> order_;
  std::vector<Range> ranges_;  // of each parameter in the flat buffers, without padding
};

}  // namespace eyrie
