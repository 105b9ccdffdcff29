#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <utility>

#include "weightcast/transport/transport.hpp"

namespace weightcast::testing_harness {

/// Sits around a transport: what a test does before and after a movement, by throwing or by changing memory.
struct Hooks {
  using Hook = std::function<void(const Peers&, const Endpoints&, const Batch&)>;
  Hook before, after;
  /// Before a segment that has landed is announced to the GPU's observer, where there is one.
  std::function<void(const Peers&, const Endpoints&, const Batch&, const Segment&)> landed;
  double patience_s = 20;  ///< how long ranks wait in a movement
};

class HookedTransport final : public Transport {
 public:
  /// `hooks` must outlive it.
  HookedTransport(std::unique_ptr<Transport> inner, const Hooks& hooks) : inner_(std::move(inner)), hooks_(&hooks) {}

  std::string_view name() const noexcept override { return inner_->name(); }
  std::optional<std::string> probe(const Peers& peers, int rank, int other) const override {
    return inner_->probe(peers, rank, other);
  }
  void attach(const Peers& peers, const TransferPlan& plan, const Endpoints& endpoints, Deadline deadline) override {
    peers_ = &peers;
    endpoints_ = &endpoints;
    plan_ = &plan;
    inner_->attach(peers, plan, endpoints, deadline);
  }
  void run(const Batch& batch, Deadline deadline) override {
    if (hooks_->before) hooks_->before(*peers_, *endpoints_, batch);
    auto inner_batch = batch;
    HookedObserver observer(*this, batch);
    if (hooks_->landed && batch.gpu_observer != nullptr) inner_batch.gpu_observer = &observer;
    inner_->run(inner_batch, Deadline::after(std::min(deadline.remaining_s(), hooks_->patience_s)));
    if (hooks_->after) hooks_->after(*peers_, *endpoints_, batch);
  }
  Traffic traffic() const noexcept override { return inner_->traffic(); }

 private:
  class HookedObserver final : public GpuObserver {
   public:
    HookedObserver(const HookedTransport& of, const Batch& batch) : of_(&of), batch_(&batch) {}
    void landed(const gpu::Stream& stream, const Part& part) noexcept override {
      stream.synchronize(Deadline::after(20), "a test");
      for (const auto& segment : part.segments.of(of_->plan_->ranks[of_->peers_->tp_rank()].schedule.segments))
        of_->hooks_->landed(*of_->peers_, *of_->endpoints_, *batch_, segment);
      batch_->gpu_observer->landed(stream, part);
    }

   private:
    const HookedTransport* of_;
    const Batch* batch_;
  };

  std::unique_ptr<Transport> inner_;
  const Hooks* hooks_;
  const Peers* peers_ = nullptr;
  const Endpoints* endpoints_ = nullptr;
  const TransferPlan* plan_ = nullptr;
};

/// As GroupOptions::make_transport.
inline TransportFactory hooked(const Hooks& hooks) {
  return [&hooks](std::string_view name, Method method, MemoryKind memory) {
    return std::make_unique<HookedTransport>(make_transport(name, method, memory), hooks);
  };
}

}  // namespace weightcast::testing_harness
