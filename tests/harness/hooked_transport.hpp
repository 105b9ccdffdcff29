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
    inner_->attach(peers, plan, endpoints, deadline);
  }
  void run(const Batch& batch, Deadline deadline) override {
    if (hooks_->before) hooks_->before(*peers_, *endpoints_, batch);
    inner_->run(batch, Deadline::after(std::min(deadline.remaining_s(), hooks_->patience_s)));
    if (hooks_->after) hooks_->after(*peers_, *endpoints_, batch);
  }
  Traffic traffic() const noexcept override { return inner_->traffic(); }

 private:
  std::unique_ptr<Transport> inner_;
  const Hooks* hooks_;
  const Peers* peers_ = nullptr;
  const Endpoints* endpoints_ = nullptr;
};

/// As GroupOptions::make_transport.
inline TransportFactory hooked(const Hooks& hooks) {
  return [&hooks](std::string_view name, Method method, MemoryKind memory) {
    return std::make_unique<HookedTransport>(make_transport(name, method, memory), hooks);
  };
}

}  // namespace weightcast::testing_harness
