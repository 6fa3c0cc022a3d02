const GATEWAY = 'https://gateway.example';

analytics.subscribe('checkout_started', async (event) => {
  const quiet = async (asked) => { try { return (await asked()) || undefined; } catch (e) { return undefined; } };
  const cookie = (name) => quiet(() => browser.cookie.get(name));
  const local = (name) => quiet(() => browser.localStorage.getItem(name));
  const gpc = navigator.globalPrivacyControl;
  const ids = {
    nexly: { visitor_id: await local('trk_visitor_id') },
    analyse: { visitor_id: await local('analyse_anon_id') },
  };
  if (!gpc && (await cookie('__dl_opt_out')) !== 'true') ids.datalyr = { visitor_id: await cookie('__dl_visitor_id') };
  const out = [await local('databuddy_opt_out'), await local('databuddy_disabled')];
  if (!gpc && !out.includes('true')) ids.databuddy = { visitor_id: await local('did') };
  const click_ids = {};  // a name without a value is not sent
  for (const name of gpc ? [] : ['_fbc', '_fbp', '_ga', '_ttp']) click_ids[name] = await cookie(name);
  const link = { ids, click_ids, subjects: { shopify_checkout: event.data.checkout.token } };
  fetch(`${GATEWAY}/link`, { method: 'POST', body: JSON.stringify(link), keepalive: true }).catch(() => {});
});
