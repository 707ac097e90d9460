"""Reference networks on data that ships with a package: trained, compared and exported, for others to build on."""
