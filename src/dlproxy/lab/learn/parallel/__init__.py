"""One network trained by several workers, in step with each other or each at its own pace. docs/learning.md#several-workers."""
