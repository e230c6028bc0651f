"""``sensai bench peers``: other servers beside this one."""
