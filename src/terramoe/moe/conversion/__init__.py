"""Conversions: from dense networks to experts, and from many experts to fewer, smaller or one."""
