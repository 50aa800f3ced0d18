"""Knowledge: clients exchange what their models say (outputs, prototypes) instead of, or besides, weights."""
