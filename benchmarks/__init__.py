"""Speed of Fedloom, side by side with bare loops and with peers. `make bench`; see README.md here."""
